"""Stages: bind openers to algorithms, check the result, write the artifact; one public function per file."""
