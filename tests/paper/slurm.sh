#!/bin/sh
# A Slurm cluster of this machine alone, to try `python -m paper run --cluster slurm` on; nothing outside DIR is written.
# Debian and Ubuntu have it: apt-get install slurmctld slurmd munge slurm-client
#
#   sh tests/paper/slurm.sh start DIR    start the daemons, and wait until the node is ready
#   export SLURM_CONF=DIR/slurm.conf     for sbatch, squeue, and all else
#   sh tests/paper/slurm.sh stop DIR     stop them
#
# The node has eight cores to give, however many there are, and two GPUs, which are files that stand for such; its
# partition is called here.
set -eu

action=${1:-}
mkdir -p -- "${2:?use: slurm.sh start|stop DIR}"
dir=$(cd -- "$2" && pwd)
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF="$dir/slurm.conf"

stop() {
    for name in slurmd slurmctld munged; do
        if [ -s "$dir/$name.pid" ]; then
            kill "$(cat "$dir/$name.pid")" 2>/dev/null || true
        fi
    done
}

start() {
    mkdir -p "$dir/state" "$dir/spool"
    chmod 755 "$dir"
    host=$(hostname -s)
    base=$((20000 + $$ % 20000)) # two clusters at once need other ports
    cat >"$SLURM_CONF" <<END
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmdPort=$((base + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=10
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:2 State=UNKNOWN
PartitionName=here Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
    # Slurm sets CUDA_VISIBLE_DEVICES to the numbers at the ends of these names, which must be devices of any kind.
    ln -sf /dev/null "$dir/gpu0"
    ln -sf /dev/zero "$dir/gpu1"
    echo "Name=gpu File=$dir/gpu[0-1]" >"$dir/gres.conf"
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
    slurmctld -i
    slurmd
    for _ in $(seq 60); do
        if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then
            return
        fi
        sleep 0.5
    done
    echo "slurm.sh: the node does not get ready; see the logs in $dir" >&2
    stop
    exit 1
}

case $action in
start | stop) "$action" ;;
*)
    echo "use: slurm.sh start|stop DIR" >&2
    exit 2
    ;;
esac
