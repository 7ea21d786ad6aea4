"""Seeded fuzzing of every kind of file that slimrank reads: damaged ones, and ones that lie about themselves."""
