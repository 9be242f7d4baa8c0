#!/bin/bash
# First process of the machine that `cargo xtask nested` emulates. Its root is the host's, read-only; this puts memory over it,
# runs the job's command as if on a machine of its own, leaves the exit status in the job's folder, and switches off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
if [ "$1" != second ]; then
  mount -t tmpfs -o size=90% memory /mnt
  mkdir /mnt/upper /mnt/work /mnt/root
  mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root
  cd /mnt/root
  mount -t proc proc proc
  mount -t sysfs sys sys
  mount -t devtmpfs dev dev
  mkdir -p dev/pts dev/shm dev/net .job
  mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
  mount -t tmpfs shm dev/shm
  mount -t tmpfs -o mode=755 run run
  mount -t tmpfs -o mode=1777,size=70% tmp tmp
  mount -t cgroup2 cgroup sys/fs/cgroup
  mount -t 9p -o trans=virtio,version=9p2000.L,msize=500000,cache=none job .job
  mount -n --move . /
  exec chroot . /bin/bash /.job/init.sh second
fi
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
[ -w /sys/kernel/mm/transparent_hugepage/enabled ] && echo always > /sys/kernel/mm/transparent_hugepage/enabled
ip link set lo up
hostname belljar-outer
ulimit -n 65536
cd /
setsid bash /.job/command.sh < /dev/null
echo $? > /.job/status
sync
echo o > /proc/sysrq-trigger
sleep 5
