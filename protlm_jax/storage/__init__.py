"""Files and folders that are written atomically, by one writer, and checked when they are read.

files.py       a file that is complete or absent
digests.py     sizes and digests of a folder's files
json_files.py  JSON of any origin, read with bounds; our own with a digest inside
arrays.py      NumPy archives of any origin, read with bounds
typed.py       values and dataclasses checked against their types
owner.py       one process at a time writes to a place
"""
