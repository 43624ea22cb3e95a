import assert from 'node:assert/strict';
import { test } from 'node:test';
import { judgeKvm } from './kvm.ts';

/** A machine on which boots take these milliseconds, one after the other. */
async function judge(software: number | string, ...hardware: (number | string)[]) {
  let boots = 0;
  return judgeKvm(async (accelerator) =>
    accelerator === 'tcg' ? software : (hardware[boots++] ?? hardware.at(-1) ?? 'no more boots'),
  );
}

test('KVM that is about as fast as software is used', async () => {
  assert.deepEqual(await judge(104, 96), {
    usable: true,
    why: 'a probe guest ran under KVM in 96 ms',
  });
});

test('KVM that is much slower than software is not used, and both times are told', async () => {
  // Measured with kvm-pvm, under which Debian's kernel hangs.
  assert.deepEqual(await judge(104, 1657, 1605), {
    usable: false,
    why: 'KVM is no help: a probe guest ran under KVM in 1605 ms, in software in 104 ms',
  });
});

test('one slow attempt on a busy machine is no reason against KVM', async () => {
  assert.equal((await judge(104, 2400, 140)).usable, true);
  assert.equal((await judge(900, 2400)).usable, true);
});

test('KVM that does not end, and an emulator that does not start, are told', async () => {
  const hung = 'qemu-system-x86_64 did not end within 5 s';
  assert.deepEqual(await judge(104, hung), { usable: false, why: `KVM is unusable: ${hung}` });
  assert.deepEqual(await judge('no such file', 90), {
    usable: false,
    why: 'no guest boots: no such file',
  });
});
