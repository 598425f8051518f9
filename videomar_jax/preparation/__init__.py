"""Videos and captions to prepared clips (`data.shards`), in shards that are completed one by one.

plan        which windows of which videos make which shard; fixed before the first clip is encoded
plan_file   the plan as a file, and what has changed since it was made
encoding    the windows of one shard to records: decode, tokenizer, text encoder
folder      the output: which shards are complete, the manifest, the list of rejected clips
tfds_info   the same files as a TFDS dataset
progress    threads that work ahead, and lines of progress
run         from settings to a complete folder, by one process or several
beam        the same, each shard an element of an Apache Beam pipeline
"""
