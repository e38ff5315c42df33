"""What is kept on disk and read back: results, sweeps, and the store of finished work.

- `result`: what a run yields, and its `result.json`
- `words`: what runs, methods and values are called
- `schema`: whether what was read has the declared types
- `varied`: which settings vary among runs, and what runs are called by them
- `table`: the columns of a summary
- `recommendation`: which setting to use, for each class and for all
- `sweep_file`: `sweep.json` and `failure.json`
- `ownership`: which sweeps this user began on this machine
- `sweep_folder`: a sweep's folder as one table
- `store`: bases, results and the like by the hash of what determines them
- `keys`: those hashes
- `leases`: folders that belong to a process while it lives
- `pruning`: what is in the store, and which entries go first
- `promises`: which bits this machine keeps equal, tried once
- `provenance`: versions, commit, machine, and the hash of the code that computes
"""
