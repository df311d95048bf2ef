"""The distributed algorithm of ringkv: pure, without sockets, files, clocks or tasks."""
