"""What models are trained to do: data that is always the same, losses and scores. One file each; no model in here."""
