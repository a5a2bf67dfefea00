"""The rules of merging, one file each."""
