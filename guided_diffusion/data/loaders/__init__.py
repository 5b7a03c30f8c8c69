"""One loader for each layout of data that is read without code of the user's."""
