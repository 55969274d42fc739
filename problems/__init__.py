"""Problems to solve: where they come from, and whether an answer to one is right."""
