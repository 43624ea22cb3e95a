import { isRouseError } from '../../errors.ts';
import { formatDuration } from '../../lib/text.ts';
import { vsphereLimits } from './limits.ts';
import type { Host, PreflightSpec, TestReport } from '../port.ts';
import type { VimClient } from './client.ts';
import { nameOfFound, nasSlots, slotAdvice } from './datastores.ts';
import { isFault } from './faults.ts';
import { datastorePaths, hostOf, hostRef, placeFor } from './inventory.ts';
import { entityName } from './names.ts';
import { missingPrivileges } from './privileges.ts';
import type { Need } from './privileges.ts';
import { readAll, readExisting, readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { at, refOf, refsOf } from './vim-xml.ts';

type Problems = { message: string; advice: string }[];

const testedHostPaths = [
  'name',
  'parent',
  'datastore',
  'runtime.connectionState',
  'runtime.inMaintenanceMode',
  'config.network.vnic',
  'configManager.advancedOption',
] as const;

/** The oldest interface that was tried: vSphere 6.5. */
const apiVersionMin = [6, 5] as const;

/**
 * Everything that would keep a recovery on that host (missing: on any host) from working, all at
 * once and each with what to do about it. Reads only.
 */
export async function preflight(client: VimClient, spec?: PreflightSpec): Promise<TestReport> {
  const problems: Problems = [];
  const facts: Record<string, string> = { address: client.name };
  let version = '';
  try {
    const service = await client.service();
    version = `${service.fullName}, API ${service.apiVersion}`;
    facts['kind'] = service.apiType === 'HostAgent' ? 'one ESXi host' : 'vCenter';
    facts['user'] = await client.userName();
    checkVersion(service.apiVersion, problems);
    await checkClock(client, facts, problems);
    if (spec === undefined) await checkHosts(client, facts, problems);
    else await checkHost(client, spec, facts, problems);
  } catch (error) {
    if (!isRouseError(error)) throw error;
    // A recovery waits for a manager that is away; to a test it is what is wrong.
    if (spec !== undefined && error.code === 'hypervisor-unreachable') throw error;
    problems.push({ message: error.message, advice: error.advice });
  }
  return { ok: problems.length === 0, version, problems, facts };
}

function checkVersion(apiVersion: string, problems: Problems): void {
  const [major = 0, minor = 0] = apiVersion.split('.').map(Number);
  const [wantedMajor, wantedMinor] = apiVersionMin;
  if (major > wantedMajor || (major === wantedMajor && minor >= wantedMinor)) return;
  problems.push({
    message: `its API is ${apiVersion || 'unknown'}; Rouse needs ${apiVersionMin.join('.')} or newer`,
    advice: 'Upgrade vCenter and its hosts to 6.5 or newer.',
  });
}

/** Sessions and certificates fail on clocks that differ; so do times that people compare. */
async function checkClock(
  client: VimClient,
  facts: Record<string, string>,
  problems: Problems,
): Promise<void> {
  const instance = { type: 'ServiceInstance', id: 'ServiceInstance' };
  const answer = await client.call('CurrentTime', instance);
  const theirs = Date.parse(at(answer, 'returnval')?.text ?? '');
  if (!Number.isFinite(theirs)) return;
  const differenceMs = theirs - client.clock.now();
  const size = formatDuration(Math.abs(differenceMs));
  facts['clock'] = `${size} ${differenceMs < 0 ? 'behind' : 'ahead of'} ours`;
  if (Math.abs(differenceMs) <= vsphereLimits.clockDriftMsMax) return;
  problems.push({
    message: `its clock is ${size} ${differenceMs < 0 ? 'behind' : 'ahead of'} ours`,
    advice: 'Let both machines follow the same time server (NTP).',
  });
}

async function checkHosts(
  client: VimClient,
  facts: Record<string, string>,
  problems: Problems,
): Promise<void> {
  const found: Found[] = [];
  await readAll(client, { HostSystem: testedHostPaths }, (one) => found.push(one));
  const reports = [];
  for (const one of found) {
    const wrong: Problems = [];
    await checkOneHost(client, one, wrong);
    reports.push({ host: hostOf(one), wrong });
    const said = wrong.map(({ message }) => message).join('; ');
    facts[`host ${entityName(one.text('name'))}`] = said === '' ? 'usable' : said;
  }
  const usable = reports.filter(({ wrong }) => wrong.length === 0);
  if (usable.length === 0) {
    if (reports.length === 0) problems.push({ message: 'it shows no host', advice: roleAdvice });
    for (const { wrong } of reports) problems.push(...wrong);
  }
  const [first] = usable.length > 0 ? usable : reports;
  if (first !== undefined) await checkPrivileges(client, first.host, needsOfAll, problems);
}

async function checkHost(
  client: VimClient,
  spec: PreflightSpec,
  facts: Record<string, string>,
  problems: Problems,
): Promise<void> {
  const found = await readOne(client, hostRef(spec.hostId), testedHostPaths);
  const host = hostOf(found);
  facts['host'] = host.name;
  await checkOneHost(client, found, problems, spec.datastore);
  await checkPrivileges(client, host, needsOfRecovery, problems);
}

async function checkOneHost(
  client: VimClient,
  found: Found,
  problems: Problems,
  datastore?: string,
): Promise<void> {
  const { name, state, addresses } = hostOf(found);
  if (state === 'disconnected') {
    const advice = 'Reconnect it in vCenter, or choose another host.';
    problems.push({ message: `host ${name} is disconnected`, advice });
    return;
  }
  if (state === 'maintenance') {
    const advice = 'End its maintenance mode, or choose another host.';
    problems.push({ message: `host ${name} is in maintenance mode`, advice });
  }
  if (addresses.length === 0) {
    const advice = 'Give it a vmkernel adapter that reaches the proxy.';
    problems.push({ message: `host ${name} has no vmkernel address`, advice });
  }
  const datastores = await readExisting(client, refsOf(found.get('datastore')), datastorePaths);
  const options = refOf(found.get('configManager.advancedOption'));
  const { used, max } = await nasSlots(client, options, datastores);
  if (used < max || datastores.some((one) => nameOfFound(one) === datastore)) return;
  problems.push({
    message: `host ${name} has ${used} NAS datastores; NFS.MaxVolumes allows ${max}`,
    advice: slotAdvice,
  });
}

const roleAdvice = 'Give the user of Rouse its role at the top of the inventory, with propagation.';

/** By what they are needed on: see docs/guide/vsphere.md for the role as a whole. */
export const needsOfRecovery: Need = {
  host: ['Host.Config.Storage'],
  pool: ['Resource.AssignVMToPool'],
  folder: [
    'VirtualMachine.Inventory.Register',
    'VirtualMachine.Inventory.Unregister',
    'VirtualMachine.Interact.PowerOn',
    'VirtualMachine.Interact.PowerOff',
    'VirtualMachine.Interact.AnswerQuestion',
    'VirtualMachine.Config.AddExistingDisk',
    'VirtualMachine.Config.RemoveDisk',
    'VirtualMachine.Config.AddRemoveDevice',
    'VirtualMachine.Config.AdvancedConfig',
    'VirtualMachine.Config.EditDevice',
    'VirtualMachine.Config.Settings',
    'VirtualMachine.Config.Rename',
    'Resource.ColdMigrate',
    'Resource.HotMigrate',
  ],
  datacenter: ['Datastore.AllocateSpace', 'Network.Assign'],
};

/** What backups need besides: the snapshot, its export, change tracking, ranges of flat files. */
export const needsOfAll: Need = {
  ...needsOfRecovery,
  folder: [
    ...needsOfRecovery.folder,
    'VirtualMachine.State.CreateSnapshot',
    'VirtualMachine.State.RemoveSnapshot',
    'VirtualMachine.Config.ChangeTracking',
    'VirtualMachine.Provisioning.DiskRandomRead',
    'VApp.Export',
  ],
  datacenter: [...needsOfRecovery.datacenter, 'Datastore.Browse'],
};

async function checkPrivileges(
  client: VimClient,
  host: Host,
  need: Need,
  problems: Problems,
): Promise<void> {
  try {
    const places = { host: hostRef(host.id), ...(await placeFor(client, host.id)) };
    for (const { privilege, object } of await missingPrivileges(client, places, need)) {
      problems.push({
        message: `privilege ${privilege} is missing on ${object}`,
        advice: `Add ${privilege} to the role of the user of Rouse there.`,
      });
    }
  } catch (error) {
    // What may not even be read is a missing privilege by itself.
    if (!isRouseError(error, 'forbidden') && !isFault(error)) throw error;
    problems.push({ message: error.message, advice: error.advice });
  }
}
