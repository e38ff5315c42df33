"""What a sweep found, for readers: tables, figures, statistics, and a page. All of it comes from what is on disk.

In reading order:

- `write`: the report's folder, its pages and its figures
- `recommended`: which setting to use for each class, in words and as a table
- `verdict`: whether anything beat doing nothing and a moved threshold, in a few sentences
- `gained`: every measure before and after, and a moved threshold beside them
- `sections`: the sections of the pages
- `search_section`: the section on a search
- `document`: a report as data, and as Markdown
- `html`: the interactive page in one file, from the templates in `page/`
- `page_data`: the data that the page draws; `page_images`: its images
- `importance`: which settings explain a measure
- `tables`: the tables as text: columns, units, decimals
- `terminal`: the tables that a sweep prints
- `next_steps`: the commands that it proposes
- `shown`: what of many classes, and of pictures of any size, a chart can show
- `figures`: figures of a run
- `sweep_figures`: figures of a sweep
- `statistics`: intervals, and Holm's procedure
- `seeds`: settings compared over their seeds
- `claims`: claims of papers, judged on a sweep
"""
