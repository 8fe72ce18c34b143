"""The benchmark, `proptim bench`: compares every rule with other libraries and with memory bandwidth."""
