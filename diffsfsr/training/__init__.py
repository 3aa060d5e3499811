"""From shards to a trained network: triplets, losses, checkpoints, the loop and its launcher."""
