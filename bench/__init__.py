"""The benchmark, `proptim bench`: every rule beside its peers and the memory's own speed, on this machine."""
