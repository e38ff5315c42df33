class TrackingError(Exception):
    pass
