import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Clock } from '../../lib/clock.ts';
import { runCommand } from '../../lib/command.ts';
import { libvirtLimits } from '../../limits.ts';

export interface KvmVerdict {
  readonly usable: boolean;
  /** One sentence. */
  readonly why: string;
}

/**
 * Whether KVM really helps: a 512-byte boot sector is booted by software emulation and by KVM.
 * /dev/kvm may exist and hang a kernel, or be an emulation slower than software; so KVM must end
 * the same work about as fast. Normal KVM needs about 0.1 s, like software; on a host whose
 * processor is itself emulated it took 4.3 s against 0.14 s, and with a KVM that runs guests
 * without the processor's help (kvm-pvm, which ends this probe and hangs Debian's kernel) 1.6 s
 * against 0.1 s. A busy machine makes one attempt slow, not all of them.
 */
export async function probeKvm(clock: Clock, emulator: string): Promise<KvmVerdict> {
  const directory = await mkdtemp(join(tmpdir(), 'rouse-kvm-'));
  try {
    const sector = join(directory, 'probe.raw');
    await writeFile(sector, bootSector);
    const boot = (accelerator: 'kvm' | 'tcg', timeoutMs: number) =>
      bootMs(clock, emulator, accelerator, sector, timeoutMs);
    return await judgeKvm(boot);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** `boot` answers milliseconds, or why it did not boot in time. */
export async function judgeKvm(
  boot: (accelerator: 'kvm' | 'tcg', timeoutMs: number) => Promise<number | string>,
): Promise<KvmVerdict> {
  const { kvmProbeMsMax, kvmProbeMsMin, kvmProbeTimesMax, kvmProbeAttempts } = libvirtLimits;
  const software = await boot('tcg', kvmProbeMsMax);
  if (typeof software === 'string') return { usable: false, why: `no guest boots: ${software}` };
  const enoughMs = Math.max(software * kvmProbeTimesMax, kvmProbeMsMin);
  let why = '';
  for (let attempt = 0; attempt < kvmProbeAttempts; attempt++) {
    const hardware = await boot('kvm', kvmProbeMsMax);
    if (typeof hardware === 'string') return { usable: false, why: `KVM is unusable: ${hardware}` };
    const took = `a probe guest ran under KVM in ${Math.round(hardware)} ms`;
    if (hardware <= enoughMs) return { usable: true, why: took };
    why = `${took}, in software in ${Math.round(software)} ms`;
  }
  return { usable: false, why: `KVM is no help: ${why}` };
}

/** Milliseconds, or why it did not boot. */
async function bootMs(
  clock: Clock,
  emulator: string,
  accelerator: 'kvm' | 'tcg',
  sector: string,
  timeoutMs: number,
): Promise<number | string> {
  const values = ['-machine', 'pc', '-accel', accelerator, '-m', '16', '-nodefaults'];
  values.push('-display', 'none', '-no-user-config', '-no-reboot');
  values.push('-drive', `file=${sector},format=raw,if=ide,snapshot=on`);
  values.push('-device', 'isa-debug-exit,iobase=0x501,iosize=2');
  const begin = clock.monotonic();
  try {
    const result = await runCommand(emulator, values, { timeoutMs });
    if (result.exit === exitOfSuccess) return clock.monotonic() - begin;
    return result.stderr.split('\n').at(-1) || `the emulator ended with ${result.exit}`;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** isa-debug-exit ends QEMU with (value << 1) | 1; the sector writes 0x10. */
const exitOfSuccess = 33;

/**
 * 16-bit start at 0x7c00; loads a GDT, enters protected mode, builds identity page tables at
 * 0x1000 (one 2 MiB page), enables PAE and EFER.LME, enters long mode, stores 100,000 times to
 * 0x10000 and writes 0x10 to port 0x501. These are the mode changes on which a bad KVM hangs.
 */
const code = [
  'fa31c08ed80f0116c07c0f20c00c010f22c0ea177c080066b810008ed88e',
  'c08ed0bc00700000bf001000000f22df31c0b9000c0000f3abc705001000',
  '0003200000c7050020000003300000c70500300000830000000f20e083c8',
  '200f22e0b9800000c00f320d000100000f300f20c00d000000800f22c0ea',
  '7e7c0000180048c7c700000100b9a086010031c04801c8488907e2f866ba',
  '0105b010eef4ebfd66900000000000000000ffff0000009acf00ffff0000',
  '0092cf00ffff0000009aaf001f00a07c0000',
];

/** A disk of 64 KiB whose first sector is the code above and the boot signature. */
const bootSector = (() => {
  const disk = Buffer.alloc(65_536);
  Buffer.from(code.join(''), 'hex').copy(disk);
  disk.writeUInt16LE(0xaa55, 510);
  return disk;
})();
