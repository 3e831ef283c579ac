"""What an audit found, as plain values: evidence, runs, their JSON, and the recorder that collects them."""
