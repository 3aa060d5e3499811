"""Selfie + scene + word -> finished portrait."""
