"""Model frameworks: each module here needs its framework, and only these modules know one."""
