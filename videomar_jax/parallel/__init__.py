"""Meshes, sharding rules and several processes."""
