"""Videos and captions to prepared clips (`data.shards`), in shards that are done one by one.

plan        which windows of which videos make which shard; fixed before the first clip is encoded
encoding    the windows of one shard to records: decode, tokenizer, text encoder
folder      the output: which shards are complete, the manifest, the list of rejected clips
run         from settings to a complete folder, by one process or several
beam        the same, each shard an element of an Apache Beam pipeline
"""
