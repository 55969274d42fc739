"""The lab: looking at runs, comparing them and measuring speed."""
