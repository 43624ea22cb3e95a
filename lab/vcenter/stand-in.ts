import { chmod, mkdir, stat, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join, resolve } from 'node:path';
import { run } from '../processes.ts';
import { SerialConsole } from '../serial.ts';
import { buildGo } from './build.ts';
import { launch, type Vcenter } from './launch.ts';

/** What a stand-in has; names are unique in their data centre, hosts in all of it. */
export interface Inventory {
  /** Default the simulator's, 6.5. */
  readonly version?: string;
  readonly datacenters: readonly {
    readonly name: string;
    readonly clusters?: readonly {
      readonly name: string;
      readonly hosts: readonly StandInHost[];
      /** Resource pools below the cluster's own. */
      readonly pools?: readonly string[];
    }[];
    /** Standalone ones. */
    readonly hosts?: readonly StandInHost[];
    /** Local (or shared) datastores; NAS ones are mounted by calls. */
    readonly datastores?: readonly {
      readonly name: string;
      /** An existing directory of this machine. */
      readonly directory: string;
      /** Who has it; default all hosts of the data centre. */
      readonly hosts?: readonly string[];
      /** Default what the directory's file system has. */
      readonly capacityBytes?: number;
    }[];
    /** Beside `VM Network`, which is always there. */
    readonly networks?: readonly string[];
    /** Folders of machines. */
    readonly folders?: readonly string[];
    /** Registered from a local datastore; see `writeMachine`. */
    readonly machines?: readonly {
      /** `[datastore] folder/file.vmx`. */
      readonly vmx: string;
      readonly host: string;
      /** Default the .vmx's displayName. */
      readonly name?: string;
      readonly poweredOn?: boolean;
    }[];
  }[];
  /** Of the one user, wherever `entity` (a name) is not given. */
  readonly missingPrivileges?: readonly MissingPrivilege[];
  readonly behaviour?: Behaviour;
  /** Further ones who may log in, with the same password. */
  readonly users?: readonly string[];
}

export interface StandInHost {
  readonly name: string;
  /** Network namespace (World.addHost); without one it acts from this process's own network. */
  readonly netns?: string;
  /** Of its vmkernel interfaces, IPv4 and IPv6. */
  readonly addresses: readonly string[];
  /** NFS.MaxVolumes, default 32. */
  readonly maxVolumes?: number;
  readonly maintenance?: boolean;
  readonly connection?: 'connected' | 'disconnected' | 'notResponding';
}

export interface MissingPrivilege {
  readonly privilege: string;
  readonly entity?: string;
}

/** Where versions of ESXi differ, or a test has to slow something down. */
export interface Behaviour {
  /** RemoveDatastore does not refuse a NAS datastore that machines use. */
  readonly nasRemoveAnyway?: boolean;
  readonly relocateBytesPerSecond?: number;
  /** How long an export lease lives without progress; default 300. */
  readonly leaseTimeoutSeconds?: number;
  /** Of machines that are powered on from now on; default guestToolsRunning. */
  readonly toolsRunningStatus?: string;
  readonly noScreenshots?: boolean;
  /** After a snapshot was removed its machine says that its disks need consolidation. */
  readonly removalLeavesFiles?: boolean;
}

export interface ScriptedFault {
  /** As in the API: `CreateNasDatastore`, `RelocateVM_Task`. */
  readonly method: string;
  /** Which call from now on; 0 or none: every one. */
  readonly nth?: number;
  /** A fault's type, such as `ResourceInUse`; none: the call is only delayed or its answer lost. */
  readonly fault?: string;
  readonly message?: string;
  readonly delayMs?: number;
  /** Of a task: fails once it has come this far, in per cent. */
  readonly atProgress?: number;
  /** Done, but the connection ends before the answer. */
  readonly dropAnswer?: boolean;
  /** Fails the call that would have started a task. */
  readonly inCall?: boolean;
  /**
   * Of a download (`GET /nfc`) or of a range of a file (`GET /folder`): it is cut off, stalls, has a
   * byte turned around (all `atByte`), comes whole where a range was asked for, or is refused.
   */
  readonly how?: 'cut' | 'stall' | 'flip' | 'whole' | 'refuse';
  readonly atByte?: number;
}

/** Asked at each power-on; a choice whose label says cancel ends it, any other lets it go on. */
export interface ScriptedQuestion {
  readonly id: string;
  readonly text: string;
  readonly choices: readonly { readonly key: string; readonly label: string }[];
  /** The task cannot be cancelled while it is asked. */
  readonly stubborn?: boolean;
}

export interface StandInCall {
  readonly method: string;
  readonly type: string;
  readonly object: string;
  readonly args?: unknown;
}

export interface NfsCall {
  readonly host: string;
  readonly command: readonly string[];
  readonly code: number;
  readonly stderr: string;
}

export interface StandInMachine {
  readonly id: string;
  readonly name: string;
  readonly host: string;
  readonly vmx: string;
  readonly poweredOn: boolean;
  readonly scsiControllers: number;
  readonly disks: readonly {
    readonly slot: string;
    readonly file: string;
    readonly sizeBytes: number;
  }[];
  readonly serialLog: string;
  readonly commandSocket: string;
}

export interface StandInDatastore {
  readonly id: string;
  readonly name: string;
  /** `server:/path` of a mounted export; empty for a local one. */
  readonly remote: string;
  readonly hosts: readonly string[];
}

/** A vCenter that does things, and takes a script. */
export interface StandIn extends Vcenter {
  fault(fault: ScriptedFault): Promise<void>;
  question(question: ScriptedQuestion): Promise<void>;
  /** The question as well. */
  clearFaults(): Promise<void>;
  /** Everyone has to log in again. */
  dropSessions(): Promise<void>;
  /** Nobody listens for a while; open connections are cut. */
  goAwayMs(ms: number): Promise<void>;
  /** Replaces what was missing before. */
  missingPrivileges(missing: readonly MissingPrivilege[]): Promise<void>;
  /** The same. */
  behaviour(behaviour: Behaviour): Promise<void>;
  /**
   * `dies`: its machines end at once and it does not respond; vCenter shows what it saw last until the
   * host is connected again.
   */
  host(
    name: string,
    state: {
      readonly maintenance?: boolean;
      readonly connection?: 'connected' | 'disconnected' | 'notResponding';
      readonly dies?: boolean;
    },
  ): Promise<void>;
  /** What VMware Tools tell; `mounts` are file systems by the slot of their disk (`scsi0:0`). */
  tools(
    machine: string,
    status: 'guestToolsRunning' | 'guestToolsNotRunning',
    mounts?: readonly { readonly slot: string; readonly path: string }[],
  ): Promise<void>;
  /** Change ids given so far are worth nothing. */
  resetChangeTracking(machine: string): Promise<void>;
  /** All calls since the start, oldest first, also those that were refused. */
  calls(): Promise<readonly StandInCall[]>;
  /** What hosts did over NFS with libnfs's programs (QEMU's own traffic is not in it). */
  nfsLog(): Promise<readonly NfsCall[]>;
  machines(): Promise<readonly StandInMachine[]>;
  datastores(): Promise<readonly StandInDatastore[]>;
  machine(name: string): Promise<StandInMachine>;
  /** The serial ports of a machine, which must have been on once; close it afterwards. */
  serial(name: string): Promise<SerialConsole>;
}

/** Starts one; needs a world (lab/world.ts) when its hosts have namespaces. */
export async function startStandIn(options: {
  /** Short: sockets in it must stay below 108 bytes (unix(7)). */
  readonly directory: string;
  readonly inventory: Inventory;
  /** Default `127.0.0.1:0`. */
  readonly address?: string;
}): Promise<StandIn> {
  const program = await buildGo(join(import.meta.dirname, 'extended'));
  const directory = resolve(options.directory);
  await mkdir(directory, { recursive: true });
  const inventory = join(directory, 'inventory.json');
  await writeFile(inventory, JSON.stringify(options.inventory));
  const args = ['-inventory', inventory, '-address', options.address ?? '127.0.0.1:0'];
  const { vcenter, said } = await launch(program, args, directory);
  const socketPath = said['control'] ?? '';
  const ask = <T>(name: string, body: unknown = {}) => askControl<T>(socketPath, name, body);
  const tell = async (name: string, body: unknown = {}) => {
    await ask(name, body);
  };
  const machine = async (name: string) => {
    const all = await ask<readonly StandInMachine[]>('machines');
    const found = all.find((each) => each.name === name);
    if (found === undefined) throw new Error(`the stand-in has no machine ${name}`);
    return found;
  };
  return {
    ...vcenter,
    fault: (fault) => tell('fault', fault),
    question: (question) => tell('question', question),
    clearFaults: () => tell('clearFaults'),
    dropSessions: () => tell('dropSessions'),
    goAwayMs: (ms) => tell('goAway', { ms }),
    missingPrivileges: (missing) => tell('privileges', missing),
    behaviour: (behaviour) => tell('behaviour', behaviour),
    host: (name, state) => tell('host', { name, ...state }),
    tools: (name, status, mounts = []) => tell('tools', { machine: name, status, mounts }),
    resetChangeTracking: (name) => tell('resetChangeTracking', { machine: name }),
    calls: () => ask('calls'),
    nfsLog: () => ask('nfsLog'),
    machines: () => ask('machines'),
    datastores: () => ask('datastores'),
    machine,
    serial: async (name) => {
      const { serialLog, commandSocket } = await machine(name);
      return new SerialConsole({ logPath: serialLog, commandSocketPath: commandSocket });
    },
  };
}

function askControl<T>(socketPath: string, name: string, body: unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    const options = { socketPath, method: 'POST', path: `/${name}`, agent: false as const };
    const call = request(options, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      response.once('error', reject).once('end', () => {
        if (response.statusCode === 200) resolve(JSON.parse(text) as T);
        else reject(new Error(`the stand-in's ${name}: ${text.trim()}`));
      });
    });
    call.once('error', reject).end(JSON.stringify(body));
  });
}

/**
 * Writes a machine as ESXi would have it below a datastore's directory: `NAME/NAME.vmx`,
 * descriptors and flat files. Returns the path of the .vmx, from the datastore's root.
 */
export async function writeMachine(options: {
  readonly directory: string;
  readonly name: string;
  /** Raw images, copied sparsely. */
  readonly disks: readonly string[];
  /** Further lines of the .vmx, over what stands here. */
  readonly settings?: Readonly<Record<string, string>>;
}): Promise<string> {
  const { name } = options;
  const folder = join(options.directory, name);
  await mkdir(folder, { recursive: true });
  const settings = new Map(Object.entries({ ...vmxDefaults, displayName: name }));
  for (const [index, image] of options.disks.entries()) {
    const disk = index === 0 ? name : `${name}_${index}`;
    const flat = join(folder, `${disk}-flat.vmdk`);
    await run('cp', ['--sparse=always', '--reflink=auto', image, flat]);
    await chmod(flat, 0o600);
    const { size } = await stat(flat);
    await writeFile(join(folder, `${disk}.vmdk`), diskDescriptor(`${disk}-flat.vmdk`, size, index));
    // The seventh target of a controller is itself.
    const slot = `scsi0:${index < 7 ? index : index + 1}`;
    settings.set(`${slot}.present`, 'TRUE').set(`${slot}.fileName`, `${disk}.vmdk`);
    settings.set(`${slot}.deviceType`, 'scsi-hardDisk');
  }
  for (const [key, value] of Object.entries(options.settings ?? {})) settings.set(key, value);
  const lines = [...settings].map(([key, value]) => `${key} = "${value}"\n`);
  await writeFile(join(folder, `${name}.vmx`), lines.join(''));
  return `${name}/${name}.vmx`;
}

const vmxDefaults = {
  '.encoding': 'UTF-8',
  'config.version': '8',
  'virtualHW.version': '13',
  memsize: '192',
  numvcpus: '1',
  guestOS: 'debian10-64',
  firmware: 'bios',
  'scsi0.present': 'TRUE',
  'scsi0.virtualDev': 'pvscsi',
  'ethernet0.present': 'TRUE',
  'ethernet0.virtualDev': 'vmxnet3',
  'ethernet0.networkName': 'VM Network',
  'ethernet0.addressType': 'generated',
  'ethernet0.generatedAddress': '00:0c:29:52:6f:75',
  'uuid.bios': '56 4d 52 6f 75 73 65 00-11 22 33 44 55 66 77 88',
} as const;

function diskDescriptor(flat: string, sizeBytes: number, index: number): string {
  const sectors = sizeBytes / 512;
  return `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
createType="vmfs"

# Extent description
RW ${sectors} VMFS "${flat}"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "${Math.max(1, Math.floor(sectors / (255 * 63)))}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.thinProvisioned = "1"
ddb.uuid = "60 00 C2 9a 52 6f 75 73-65 00 00 00 00 00 00 ${index.toString(16).padStart(2, '0')}"
ddb.virtualHWVersion = "13"
`;
}
