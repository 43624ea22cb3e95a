import { RouseError, isRouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';
import type { MachineDetail, PowerState, RegisterSpec } from '../port.ts';
import type { VimClient } from './client.ts';
import { savedConfiguration } from './configuration.ts';
import { machineDisks, networksOf } from './devices.ts';
import { isFault } from './faults.ts';
import { hostRef, machineRef, placeFor, powerOf } from './inventory.ts';
import {
  datastorePath,
  entityName,
  escapeEntityName,
  markKeys,
  parseDatastorePath,
} from './names.ts';
import { readAll, readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { QuestionDesk } from './questions.ts';
import { beginTask, followTask, runningTask, runTask } from './tasks.ts';
import { items, leaf, node, refOf, reference, refsOf, textAt, textValue } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';
import { watchUntil } from './watch.ts';

const detailPaths = [
  'name',
  'config.uuid',
  'config.files.vmPathName',
  'config.hardware',
  'config.firmware',
  'config.guestId',
  'runtime.host',
  'runtime.powerState',
] as const;

export async function machineDetail(client: VimClient, idOrName: string): Promise<MachineDetail> {
  const found = await findMachine(client, idOrName);
  const power = powerOf(found.text('runtime.powerState'));
  const devices = devicesOf(found);
  return {
    id: found.ref.id,
    name: entityName(found.text('name')),
    uuid: (found.text('config.uuid') ?? '').toLowerCase(),
    hostId: refOf(found.get('runtime.host'))?.id ?? '',
    power,
    disks: machineDisks(devices),
    networks: networksOf(devices, power === 'on'),
    configuration: await savedConfiguration(client, found),
  };
}

/** `device` of config.hardware repeats beside its other elements; as a list of its own. */
export function devicesOf(found: Found) {
  const hardware = found.get('config.hardware');
  if (hardware === undefined) return undefined;
  const children = hardware.children.filter(({ name }) => name === 'device');
  return { ...hardware, children };
}

/** By id, else by name. Throws `not-found`, and `bad-request` when several bear that name. */
async function findMachine(client: VimClient, idOrName: string): Promise<Found> {
  try {
    return await readOne(client, machineRef(idOrName), detailPaths);
  } catch (error) {
    if (!isRouseError(error, 'not-found')) throw error;
  }
  const named: Ref[] = [];
  await readAll(client, { VirtualMachine: ['name'] }, (one) => {
    if (entityName(one.text('name')) === idOrName) named.push(one.ref);
  });
  const [only] = named;
  if (only === undefined) throw new RouseError('not-found', `there is no machine ${idOrName}`);
  if (named.length > 1) {
    const ids = named.map(({ id }) => id);
    throw new RouseError('bad-request', `${ids.length} machines are named ${idOrName}`, {
      advice: `Name one by its id: ${ids.join(', ')}.`,
      details: { ids },
    });
  }
  return readOne(client, only, detailPaths);
}

/** Step 9. A machine of this recovery is found by its mark; one of the same name is refused. */
export async function register(client: VimClient, spec: RegisterSpec): Promise<string> {
  const path = datastorePath(spec.datastore.name, `${spec.folder}/${spec.configured.fileName}`);
  const there = await lookAround(client, spec.mark, spec.name, path);
  if (there.ours !== undefined) return marked(client, there.ours, spec);
  if (there.foreign !== undefined) throw foreign(spec.name, there.foreign);
  const { folder, pool } = await placeFor(client, spec.hostId);
  const args = [
    leaf('path', path),
    leaf('name', escapeEntityName(spec.name)),
    leaf('asTemplate', false),
    reference('pool', pool),
    reference('host', hostRef(spec.hostId)),
  ];
  try {
    const what = `registering ${spec.name}`;
    const made = refOf(await runTask(client, 'RegisterVM_Task', folder, args, { what }));
    if (made !== undefined) return await marked(client, made, spec);
  } catch (error) {
    if (!isFault(error, 'AlreadyExists', 'DuplicateName')) throw error;
    const now = await lookAround(client, spec.mark, spec.name, path);
    if (now.ours === undefined) throw foreign(spec.name, now.foreign ?? error.message);
    return marked(client, now.ours, spec);
  }
  const { ours } = await lookAround(client, spec.mark, spec.name, path);
  if (ours !== undefined) return marked(client, ours, spec);
  throw new RouseError(
    'hypervisor-error',
    `${client.name} says it registered ${spec.name}, not as what`,
  );
}

function foreign(name: string, other: string): RouseError {
  return new RouseError(
    'already-exists',
    `a machine ${name} (${other}) exists and is not of this recovery`,
    { advice: 'Choose another name with --name, or rename that machine.' },
  );
}

/** A manager that does not take our keys out of the .vmx is told them. */
async function marked(client: VimClient, machine: Ref, spec: RegisterSpec): Promise<string> {
  const found = await readOne(client, machine, ['config.extraConfig', 'config.uuid']);
  if (extraValue(found, markKeys.mark) === spec.mark) return machine.id;
  const option = (key: string, value: string) =>
    node('extraConfig', [leaf('key', key), textValue('value', value)], 'OptionValue');
  const config = node('spec', [
    option(markKeys.mark, spec.mark),
    option(markKeys.datastore, spec.datastore.name),
    option(markKeys.uuid, (found.text('config.uuid') ?? '').toLowerCase()),
  ]);
  const what = `marking ${spec.name} as ours`;
  await runTask(client, 'ReconfigVM_Task', machine, [config], { what });
  return machine.id;
}

export function extraValue(found: Found, key: string): string | undefined {
  const option = items(found.get('config.extraConfig')).find((one) => textAt(one, 'key') === key);
  return textAt(option, 'value');
}

const markPaths = [
  'name',
  'config.uuid',
  'config.extraConfig',
  'config.files.vmPathName',
  'runtime.powerState',
] as const;

async function lookAround(client: VimClient, mark: string, name: string, path: string) {
  let ours: Ref | undefined;
  let other: string | undefined;
  await readAll(client, { VirtualMachine: markPaths }, (one) => {
    const own = markOf(one);
    const isAtPath = one.text('config.files.vmPathName') === path && (own ?? mark) === mark;
    if (own === mark || isAtPath) ours ??= one.ref;
    else if (entityName(one.text('name')) === name) other ??= one.ref.id;
  });
  return { ours, foreign: other };
}

/**
 * The recovery that a machine belongs to. A clone that somebody made of a machine of ours carries
 * our keys too, but has a UUID of its own. Without keys, a .vmx on a datastore of ours tells.
 */
export function markOf(found: Found): string | undefined {
  const mark = extraValue(found, markKeys.mark);
  if (mark !== undefined && mark !== '') {
    const uuid = extraValue(found, markKeys.uuid);
    const now = (found.text('config.uuid') ?? '').toLowerCase();
    return uuid === undefined || uuid === '' || uuid === now ? mark : undefined;
  }
  const store = parseDatastorePath(found.text('config.files.vmPathName') ?? '')?.datastore;
  return /^rouse-(.+)$/u.exec(store ?? '')?.[1];
}

/** One look at each machine: extraConfig has no index. */
export async function findMarked(client: VimClient, mark: string): Promise<string | undefined> {
  let found: string | undefined;
  await readAll(client, { VirtualMachine: markPaths }, (one) => {
    if (markOf(one) === mark) found ??= one.ref.id;
  });
  return found;
}

export async function markedMachines(client: VimClient) {
  const machines: { id: string; name: string; power: PowerState; mark: string }[] = [];
  await readAll(client, { VirtualMachine: markPaths }, (one) => {
    const mark = markOf(one);
    if (mark === undefined) return;
    const name = entityName(one.text('name'));
    machines.push({ id: one.ref.id, name, power: powerOf(one.text('runtime.powerState')), mark });
  });
  return machines;
}

/** Takes it out of the inventory; its files stay. Only ours, and only while it lies on its export. */
export async function unregister(client: VimClient, id: string): Promise<void> {
  const machine = machineRef(id);
  try {
    const found = await readOne(client, machine, [...markPaths, 'config.hardware']);
    const name = entityName(found.text('name'));
    if (powerOf(found.text('runtime.powerState')) !== 'off') {
      throw new RouseError('wrong-state', `machine ${name} is running`, {
        advice: 'Power it off first.',
      });
    }
    refuseProduction(found, name);
    await client.call('UnregisterVM', machine);
  } catch (error) {
    if (!isRouseError(error, 'not-found')) throw error;
  }
}

function refuseProduction(found: Found, name: string): void {
  if (markOf(found) === undefined) {
    throw new RouseError('wrong-state', `machine ${name} is not one of ours`, {
      advice: 'Rouse unregisters machines that it registered itself, and no others.',
    });
  }
  const from = extraValue(found, markKeys.datastore);
  if (from === undefined) return;
  const files = items(devicesOf(found)).map((device) => textAt(device, 'backing.fileName') ?? '');
  const all = [found.text('config.files.vmPathName') ?? '', ...files];
  if (all.some((file) => parseDatastorePath(file)?.datastore === from)) return;
  // An unmounted datastore's files have no name any more; those of a relocated machine have.
  if (!all.some((file) => parseDatastorePath(file) !== undefined)) return;
  throw new RouseError('wrong-state', `machine ${name} has left ${from}: it is production now`, {
    advice: 'It stays registered. Remove it in vCenter if it is not needed.',
  });
}

export async function powerState(client: VimClient, id: string): Promise<PowerState> {
  const found = await readOne(client, machineRef(id), ['runtime.powerState']);
  return powerOf(found.text('runtime.powerState'));
}

const powerPaths = ['name', 'runtime.powerState', 'recentTask'] as const;

/** Killed on the way, a power-on that runs is joined. */
export async function powerOn(client: VimClient, id: string): Promise<void> {
  const found = await readOne(client, machineRef(id), powerPaths);
  if (powerOf(found.text('runtime.powerState')) === 'on') return;
  const name = entityName(found.text('name'));
  const desk = new QuestionDesk(client, found.ref, name);
  const what = `powering on ${name}`;
  const task =
    (await runningPowerOn(client, found)) ??
    (await beginTask(client, 'PowerOnVM_Task', found.ref, [], { what }));
  try {
    await followTask(client, task, { what, beside: desk });
  } catch (error) {
    if (desk.isLeftOpen) await desk.dismiss(task);
    if (!isFault(error, 'InvalidPowerState') || (await powerState(client, id)) !== 'on')
      throw error;
  }
}

async function runningPowerOn(client: VimClient, found: Found): Promise<Ref | undefined> {
  return (await runningTask(client, refsOf(found.get('recentTask')), 'powerOn'))?.ref;
}

export async function powerOff(
  client: VimClient,
  id: string,
  how: 'shutdown' | 'off',
  graceMs: number = vsphereLimits.shutdownGraceMs,
): Promise<void> {
  const found = await readOne(client, machineRef(id), powerPaths);
  if (powerOf(found.text('runtime.powerState')) === 'off') {
    if (!(await endsStarting(client, found))) return;
  } else if (how === 'shutdown' && (await shutDown(client, machineRef(id), graceMs))) return;
  if ((await powerState(client, id)) === 'off') return;
  try {
    await runTask(client, 'PowerOffVM_Task', machineRef(id), [], { what: `powering off ${id}` });
  } catch (error) {
    if (!isFault(error, 'InvalidPowerState') || (await powerState(client, id)) !== 'off')
      throw error;
  }
}

/** One that is about to be on, or asks something first, is not off yet; false: it is. */
async function endsStarting(client: VimClient, found: Found): Promise<boolean> {
  const task = await runningPowerOn(client, found);
  if (task === undefined) return false;
  const name = entityName(found.text('name'));
  if (await new QuestionDesk(client, found.ref, name).dismiss(task)) return true;
  throw new RouseError('busy', `${name} is being powered on, and asks something`, {
    advice: 'Answer it in vCenter; then it goes on by itself.',
  });
}

/** Asks the guest; false when it cannot be asked, or is still there after its time. */
async function shutDown(client: VimClient, machine: Ref, graceMs: number): Promise<boolean> {
  try {
    await client.call('ShutdownGuest', machine);
    await watchUntil(
      client,
      [{ ref: machine, paths: ['runtime.powerState'] }],
      (latest) =>
        latest.get(machine, 'runtime.powerState')?.text === 'poweredOff' ? true : undefined,
      { what: `shutting down ${machine.id}`, timeoutMs: graceMs },
    );
    return true;
  } catch (error) {
    // ToolsUnavailable and the like, or the guest did not do it in time.
    if (isFault(error) || isRouseError(error, 'time-out')) return false;
    throw error;
  }
}
