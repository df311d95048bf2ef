"""Bytes to frames to messages: the peer and client port's language."""
