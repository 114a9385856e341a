"""What several verbs of the command line share, and verbs that are of no other folder."""
