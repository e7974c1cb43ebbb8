#!/usr/bin/env bash
# Trains on two hosts for real, on one machine: two network namespaces with addresses of their own and a cable between them.
# Then the cable is cut in the middle of a run: both sides must end with a clear error within the time limit.
#
#     sudo tests/scripts/two_hosts.sh        (needs Linux, root and `ip`)
set -euo pipefail
limit=${LIMIT:-10} # seconds, for messages between the processes
scratch=$(mktemp -d)
one=charlm-one two=charlm-two
clean() {
  ip netns del $one 2> /dev/null || true
  ip netns del $two 2> /dev/null || true
  rm -rf "$scratch"
}
trap clean EXIT
clean
mkdir "$scratch"
ip netns add $one
ip netns add $two
ip link add cable-one netns $one type veth peer name cable-two netns $two
for number in 1 2; do
  name=$([ $number = 1 ] && echo one || echo two)
  ip -n charlm-$name addr add 10.87.0.$number/24 dev cable-$name
  ip -n charlm-$name link set cable-$name up
  ip -n charlm-$name link set lo up
done

cd "$scratch"
python -c "
import random
print(' '.join(random.Random(1).choices(['two', 'hosts', 'read', 'one', 'long', 'text,', 'and', 'learn'], k=5000)))" > text.txt

# run NAMESPACE NODE FOLDER STEPS: the process of one host; each has its own current folder, so nothing is shared
run() {
  mkdir -p "$scratch/host-$2"
  cd "$scratch/host-$2"
  cp ../text.txt .
  exec env OMP_NUM_THREADS=1 CHARLM_PEER_TIMEOUT="$limit" CHARLM_CACHE="$scratch/cache-$2" GLOO_SOCKET_IFNAME="cable-${1#charlm-}" \
    RANK="$2" WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=10.87.0.1 MASTER_PORT=29400 \
    ip netns exec "$1" python -m charlm train text.txt --out "$3" --json --set model.hidden=64 --set train.batch=5 \
    --set train.epochs=null --set train.total_steps="$4" --set train.precision=fp32 --set checkpoint.every=20
}

echo "== two hosts"
(run $two 1 run 200) > two.log 2>&1 &
(run $one 0 run 200) > one.log 2>&1
wait $!
tail -1 one.log | python -c "
import json, sys
record = json.load(sys.stdin)
print({key: record[key] for key in ('step', 'processes', 'streams', 'train_nats', 'characters_per_second')})
assert record['step'] == 200 and record['processes'] == 2"
test ! -e host-1/run # only the first host writes

echo "== the cable is cut"
(run $one 0 cut 10000000) > one.log 2>&1 &
first=$!
(run $two 1 cut 10000000) > two.log 2>&1 &
second=$!
until [ -e host-0/cut/last.safetensors ]; do sleep 0.1; done
sleep 1
ip -n $one link set cable-one down
began=$(date +%s)
for process in $first $second; do
  code=0
  wait $process || code=$?
  echo "exit code $code after $(($(date +%s) - began)) seconds"
  test $code = 1
done
test $(($(date +%s) - began)) -le $((limit + 10))
for log in one.log two.log; do grep "lost the others" $log; done
echo "== both sides said so within $limit seconds and their end"
