"""The networks: U-Nets, condition models and what they are made of."""
