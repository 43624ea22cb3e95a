import { lookup } from 'node:dns/promises';
import { access, constants, readFile } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { RouseError, isRouseError } from '../../errors.ts';
import { hasCommand } from '../../lib/command.ts';
import type { TestReport } from '../port.ts';
import type { LibvirtContext } from './context.ts';
import { qemuSpeaksNfs, whyNoKernelClient } from './datastores.ts';
import { probeKvm } from './kvm.ts';
import type { KvmVerdict } from './kvm.ts';
import { remoteHost } from './virsh.ts';
import { childrenNamed, find, parseXml, text } from './xml.ts';

/**
 * Every address from which the host may speak NFS. Local: all of this network namespace. Remote:
 * those of the configuration, or what the URI's host name resolves to.
 */
export async function hostAddresses(context: LibvirtContext): Promise<readonly string[]> {
  const given = context.options.addresses ?? [];
  if (given.length > 0) return given;
  const host = remoteHost(context.virsh.uri);
  if (host === undefined) {
    const all = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
    return [...new Set(all.map((one) => one.address.replace(/%.*$/u, '')))];
  }
  try {
    return (await lookup(host, { all: true })).map((found) => found.address);
  } catch (error) {
    throw new RouseError('host-unreachable', `the name ${host} does not resolve`, { cause: error });
  }
}

/**
 * KVM or software emulation. Local hosts are probed once per boot of the host (the verdict is
 * kept until `again`); for remote ones, where nothing can be run, libvirt's own word is taken.
 */
export async function decideKvm(context: LibvirtContext, again = false): Promise<KvmVerdict> {
  const wanted = context.options.acceleration ?? 'auto';
  if (wanted !== 'auto') return { usable: wanted === 'kvm', why: `${wanted} is configured` };
  if (!context.virsh.isLocal) {
    const usable = (await emulatorPath(context, 'kvm')) !== undefined;
    return { usable, why: `libvirt ${usable ? 'offers' : 'does not offer'} KVM on that host` };
  }
  const bootId = await readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => 'unknown');
  const known = context.state.current.kvm;
  if (!again && known?.bootId === bootId) return { usable: known.usable, why: known.why };
  const hasDevice = await readFile('/proc/misc', 'utf8').then(
    (misc) => /\bkvm$/mu.test(misc),
    () => true,
  );
  const verdict = hasDevice
    ? await probeKvm(context.clock, (await emulatorPath(context, 'qemu')) ?? defaultEmulator)
    : { usable: false, why: 'the kernel has no KVM' };
  await context.state.change((state) => ({ ...state, kvm: { bootId, ...verdict } }));
  return verdict;
}

const defaultEmulator = 'qemu-system-x86_64';

async function emulatorPath(
  context: LibvirtContext,
  type: 'kvm' | 'qemu',
): Promise<string | undefined> {
  try {
    const xml = await context.virsh.run(['domcapabilities', '--virttype', type]);
    return text(find(parseXml(xml, 'the host capabilities'), 'path')) || undefined;
  } catch (error) {
    if (isRouseError(error)) return undefined;
    throw error;
  }
}

type Problems = { message: string; advice: string }[];

/** Everything that is wrong at once. */
export async function testHost(
  context: LibvirtContext,
  decide: () => Promise<KvmVerdict>,
): Promise<TestReport> {
  const problems: Problems = [];
  const facts: Record<string, string> = { uri: context.virsh.uri };
  let version = '';
  try {
    version = versionOf(await context.virsh.run(['version', '--daemon']));
    facts['host'] = (await context.virsh.run(['hostname'])).trim();
    await testEmulators(context, facts, problems);
    await testWriting(context, problems);
  } catch (error) {
    if (!isRouseError(error)) throw error;
    problems.push({ message: error.message, advice: error.advice });
  }
  if (context.virsh.isLocal) {
    await testTools(facts, problems);
    await testDirectories(context, problems);
  }
  if (version !== '') {
    const verdict = await decide();
    facts['acceleration'] = verdict.usable ? 'kvm' : 'tcg';
    facts['accelerationReason'] = verdict.why;
  }
  return { ok: problems.length === 0, version, problems, facts };
}

function versionOf(said: string): string {
  const daemon = /Running against daemon: (\S+)/u.exec(said)?.[1] ?? 'unknown';
  const emulator = /Running hypervisor: (.+)/u.exec(said)?.[1] ?? 'an unknown hypervisor';
  return `libvirt ${daemon}, ${emulator}`;
}

async function testEmulators(
  context: LibvirtContext,
  facts: Record<string, string>,
  problems: Problems,
): Promise<void> {
  const path = await emulatorPath(context, 'qemu');
  if (path !== undefined) {
    facts['emulator'] = path;
    return;
  }
  problems.push({
    message: 'libvirt knows no emulator for this host',
    advice: 'Install one: apt-get install qemu-system-x86',
  });
}

/** A read-only connection answers questions and refuses all work. */
async function testWriting(context: LibvirtContext, problems: Problems): Promise<void> {
  const xml = await context.virsh.run(['capabilities']);
  const guests = childrenNamed(parseXml(xml, 'the host capabilities'), 'guest');
  if (guests.length === 0) {
    problems.push({
      message: 'the host runs no guests',
      advice: 'Install libvirt-daemon-driver-qemu and an emulator.',
    });
  }
}

async function testDirectories(context: LibvirtContext, problems: Problems): Promise<void> {
  for (const { name, path } of context.options.datastores ?? []) {
    const isThere = await access(path, constants.W_OK).then(
      () => true,
      () => false,
    );
    if (isThere) continue;
    problems.push({
      message: `the datastore ${name} is not there, or cannot be written: ${path}`,
      advice: `Make it: mkdir -p ${path}`,
    });
  }
}

async function testTools(facts: Record<string, string>, problems: Problems): Promise<void> {
  if (!(await hasCommand('qemu-img'))) {
    const advice = 'Install it: apt-get install qemu-utils';
    problems.push({ message: 'qemu-img is missing', advice });
    return;
  }
  const kernel = await whyNoKernelClient();
  const qemu = await qemuSpeaksNfs();
  facts['nfsClients'] = [qemu ? 'qemu' : '', kernel === undefined ? 'kernel' : '']
    .filter((name) => name !== '')
    .join(', ');
  if (!qemu && kernel !== undefined) {
    problems.push({
      message: `the host has no NFS client: QEMU's is missing, and ${kernel}`,
      advice: 'Install it: apt-get install qemu-block-extra',
    });
  }
}
