"""The tape: what a Dynamo graph does, as ATen operations on values that never change."""
