"""The process and machine a program runs on: its mesh, what it saves for the backward pass, its memory."""
