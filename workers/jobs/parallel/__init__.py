"""Data-parallel trainings: processes of a work horse that train one network together."""
