"""Many checkpoints of one network: each audited by itself, by any executor, none twice, and one index of them."""
