"""Names every neuron of a vision network, says how far each name can be trusted, and shows why."""
