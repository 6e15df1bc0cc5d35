# SPDX-License-Identifier: Apache-2.0
"""What `vfsfuse sweep` does: a program runs again and again, and each time another of its calls fails.

Each run is a process of ours (`single`) with a private lab, a fault rule in it, and the program.  The sweep
(`sweeping`) starts these, and `verdicts` says of each what it shows.  Nothing here knows how a call fails:
the rule is a line for the lab's file `faults`.
"""
