"""Files and folders that are whole, have one writer at a time, and are checked when read.

files.py     a file that appears whole, or not at all
digests.py   what a folder's files were when they were written, and whether they still are
json_files.py  JSON of any origin, read with bounds; our own with a digest inside
arrays.py    NumPy archives of any origin, read with bounds
owner.py     one process at a time writes to a place
"""
