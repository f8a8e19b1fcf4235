"""The renderer of the data set rooms (extra `render`)."""
