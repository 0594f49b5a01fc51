# SPDX-License-Identifier: Apache-2.0
"""A model of a guest's disks beside the real ones, and random operations and deaths
on both. See `engine --help`."""
