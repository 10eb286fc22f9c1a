"""Data-parallel training: several processes train one network, each on a part of every batch."""
