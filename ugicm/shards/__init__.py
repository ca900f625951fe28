"""WebDataset shards: tar files whose members share a name up to the first dot if they belong to one sample."""
