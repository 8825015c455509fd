#!/usr/bin/perl
# What a program that was taken over tries in the sandbox, one attempt for each argument KIND=WHAT; prints "KIND=WHAT GOT".
use strict; use warnings;
use Config;
use Socket;
my %call = $Config{archname} =~ /x86_64/
	? (io_uring => 425, add_key => 248, setsid => 112, ptrace => 101, unshare => 272, prlimit => 302, mknod => 133, memory => 310, written => 311, keyctl => 250, kcmp => 312, pidfd_open => 434, pidfd_getfd => 438)
	: (io_uring => 425, add_key => 217, setsid => 157, ptrace => 117, unshare => 97, prlimit => 261, mknod => 33, memory => 270, written => 271, keyctl => 219, kcmp => 272, pidfd_open => 434, pidfd_getfd => 438);

sub got { my ($worked) = @_; return $worked ? 'done' : "refused ($!)" }

my %attempts = (
	read => sub { open(my $file, '<', $_[0]) or return got(0); my $line = <$file> // ''; chomp $line; return "read $line" },
	list => sub { opendir(my $directory, $_[0]) or return got(0); return 'listed ' . grep { !/^\.\.?$/ } readdir $directory },
	write => sub { open(my $file, '>', $_[0]) or return got(0); return got(print $file 'mine') },
	remove => sub { got(unlink $_[0]) },
	move => sub { my ($from, $to) = split /,/, $_[0]; got(rename $from, $to) },
	start => sub { my $code = system { $_[0] } $_[0]; return $code == 0 ? 'done' : "refused ($!)" },
	signal => sub { got(kill 0, $_[0]) },
	unix => sub { socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or return got(0); got(connect $socket, pack_sockaddr_un($_[0])) },
	abstract => sub { socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or return got(0); got(connect $socket, pack_sockaddr_un("\0$_[0]")) },
	tcp => sub { socket(my $socket, PF_INET, SOCK_STREAM, 6) or return got(0); got(connect $socket, pack_sockaddr_in($_[0], INADDR_LOOPBACK)) },
	mptcp => sub { socket(my $socket, PF_INET, SOCK_STREAM, 262) or return got(0); got(connect $socket, pack_sockaddr_in($_[0], INADDR_LOOPBACK)) },
	fastopen => sub { socket(my $socket, PF_INET, SOCK_STREAM, 6) or return got(0); got(send $socket, 'x', 0x20000000, pack_sockaddr_in($_[0], INADDR_LOOPBACK)) },
	listen => sub { socket(my $socket, PF_INET, SOCK_STREAM, 6) or return got(0); got(bind $socket, pack_sockaddr_in($_[0], INADDR_LOOPBACK)) },
	pair => sub { got(socketpair(my $one, my $other, PF_UNIX, SOCK_DGRAM, 0)) },
	sequence => sub { got(socket(my $socket, PF_INET, SOCK_SEQPACKET, 0)) },
	netlink => sub { got(socket(my $socket, 16, SOCK_RAW, 0)) },
	fork => sub { my $child = fork // return got(0); exit 0 unless $child; waitpid $child, 0; 'done' },
	grow => sub { my $child = fork // return got(0); if ($child) { waitpid $child, 0; return $? ? 'refused' : 'done' } my $bytes = 'x' x $_[0]; exit 0 },
	io_uring => sub { my $buffer = "\0" x 120; got(syscall($call{io_uring}, 1, $buffer) >= 0) },
	add_key => sub { my ($kind, $name, $value) = ('user', 'k', 'v'); got(syscall($call{add_key}, $kind, $name, $value, 1, -3) >= 0) },
	setsid => sub { my $child = fork // return got(0); if ($child) { waitpid $child, 0; return $? ? 'refused' : 'done' } exit(syscall($call{setsid}) < 0 ? 1 : 0) },
	ptrace => sub { got(syscall($call{ptrace}, 16, $_[0], 0, 0) >= 0) },
	memory => sub { my $vector = "\0" x 16; got(syscall($call{memory}, $_[0] + 0, $vector, 0, $vector, 0, 0) >= 0) },
	written => sub { my $vector = "\0" x 16; got(syscall($call{written}, $_[0] + 0, $vector, 0, $vector, 0, 0) >= 0) },
	keyctl => sub { got(syscall($call{keyctl}, 1, 0, 0, 0, 0) >= 0) },
	kcmp => sub { got(syscall($call{kcmp}, $$, $$, 0, 0, 0) >= 0) },
	pidfd => sub { got(syscall($call{pidfd_open}, $_[0] + 0, 0) >= 0) },
	unshare => sub { got(syscall($call{unshare}, 0x10000000) >= 0) },
	limit => sub { my $limit = "\0" x 16; got(syscall($call{prlimit}, $_[0] + 0, 7, 0, $limit) >= 0) },
	fifo => sub { my $path = $_[0]; got(syscall($call{mknod}, $call{mknod} == 133 ? ($path, 0010644, 0) : (-100, $path, 0010644, 0)) >= 0) },
	chmod => sub { got(chmod 0600, $_[0]) },
);
$| = 1;
for my $attempt (@ARGV) {
	my ($kind, $what) = split /=/, $attempt, 2;
	$! = 0;
	print "$kind=$what ", $attempts{$kind}->($what), "\n";
}
