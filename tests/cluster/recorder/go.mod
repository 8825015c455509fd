module kiln.build/tests/cluster/recorder

go 1.26.0
