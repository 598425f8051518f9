"""The loss, the step, the state and the loop around them."""
