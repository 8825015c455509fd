#!/bin/sh
# The program that answers each request; its @…@ are filled in by the build.
cat <<END
Content-Type: text/html; charset=utf-8

<!doctype html>
<title>@GREETING@</title>
<h1>@GREETING@</h1>
<p>built on @ARCHITECTURE@, running on $(uname -m), $(hostname)</p>
<pre>
@PICTURE@
</pre>
END
