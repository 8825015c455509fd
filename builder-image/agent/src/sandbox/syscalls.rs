//! The system calls that a sandboxed child is refused: ways round Landlock, and ways to other processes of the same user.
//! The container's own seccomp profile stays beneath.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::{Confinement, Network};

/// Marks a system call of x32 on amd64, whose numbers are those of amd64 but for the ones in [`X32_ALONE`].
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;
/// Those of the calls below that x32 numbers otherwise: ptrace, the two that reach into other processes' memory, sendmsg
/// and sendmmsg. <https://github.com/torvalds/linux/blob/v6.18/arch/x86/entry/syscalls/syscall_64.tbl>
#[cfg(target_arch = "x86_64")]
const X32_ALONE: [(i64, i64); 5] = [
    (libc::SYS_ptrace, 521),
    (libc::SYS_process_vm_readv, 539),
    (libc::SYS_process_vm_writev, 540),
    (libc::SYS_sendmsg, 518),
    (libc::SYS_sendmmsg, 538),
];

/// The bits of a socket's type that say which kind it is.
const KIND: i32 = 0xf;

/// Reaching into other processes, changing what they may use, or outliving the process group; talking to the kernel past
/// what Landlock looks at; what the kernel keeps for all processes of a user; files that are none.
const REFUSED: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    libc::SYS_mknodat,
];

/// Starting another process or thread.
const STARTS: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

/// The filters, to be set one after the other.
pub(super) fn filters(confinement: &Confinement) -> Result<[BpfProgram; 2], BackendError> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    // Its own limits, not those of others.
    refused.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![is_not(0, 0)?])?]);
    // Fast open connects without a look at the port.
    let fast_open = u64::from(libc::MSG_FASTOPEN.cast_unsigned());
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        let condition =
            SeccompCondition::new(flags, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(fast_open), fast_open)?;
        refused.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }

    if confinement.alone {
        refused.extend(STARTS.iter().map(|call| (*call, Vec::new())));
    }

    let mut families = Vec::new();
    if confinement.network != Network::None {
        families.extend([libc::AF_INET, libc::AF_INET6]);
    }
    if confinement.unix_socket.is_some() {
        families.push(libc::AF_UNIX);
    }
    let sockets = if families.is_empty() {
        Vec::new()
    } else {
        // Of another protocol than TCP, such as MPTCP, Landlock does not look at the port.
        let protocols = [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP];
        let rules = vec![SeccompRule::new(none_of(0, &families)?)?, SeccompRule::new(none_of(2, &protocols)?)?];
        [rules, kinds_but(&[libc::SOCK_STREAM, libc::SOCK_DGRAM])?].concat()
    };
    // Such a pair has two ends and no name, but of datagrams each could be sent elsewhere.
    let pairs = [vec![SeccompRule::new(none_of(0, &[libc::AF_UNIX])?)?], kinds_but(&[libc::SOCK_STREAM])?];
    let sockets = BTreeMap::from([(libc::SYS_socket, sockets), (libc::SYS_socketpair, pairs.concat())]);
    // "Address family not supported": look-ups of names then go on without the kernel's list of addresses.
    Ok([filter(refused, libc::EPERM)?, filter(sockets, libc::EAFNOSUPPORT)?])
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> Result<BpfProgram, BackendError> {
    #[cfg(target_arch = "x86_64")]
    let rules: BTreeMap<_, _> = rules
        .into_iter()
        .flat_map(|(call, rules)| {
            let alone = X32_ALONE.into_iter().find(|(known, _)| *known == call).map_or(call, |(_, number)| number);
            [(call, rules.clone()), (alone | X32, rules)]
        })
        .collect();
    let action = SeccompAction::Errno(error.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, action, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// All kinds of sockets but these; flags stand above the kind.
fn kinds_but(kinds: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    let others = (0..=KIND).filter(|kind| !kinds.contains(kind));
    let rule = |kind: i32| {
        let mask = SeccompCmpOp::MaskedEq(KIND.cast_unsigned().into());
        let value = kind.cast_unsigned().into();
        SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, mask, value)?])
    };
    others.map(rule).collect()
}

fn none_of(argument: u8, values: &[i32]) -> Result<Vec<SeccompCondition>, BackendError> {
    values.iter().map(|value| is_not(argument, value.cast_unsigned().into())).collect()
}

fn is_not(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_for_all_kinds_of_children() {
        for network in [Network::None, Network::Ports(vec![443]), Network::Any] {
            for unix_socket in [None, Some("/x".into())] {
                let confinement =
                    Confinement { network: network.clone(), unix_socket, alone: true, ..Confinement::default() };
                let filters = filters(&confinement).unwrap();
                // The kernel takes 4096 instructions.
                assert!(filters.iter().all(|filter| (1..4096).contains(&filter.len())), "{network:?}");
            }
        }
    }
}
