import { z } from 'zod';
import { bytes, clientAddress, failure, flag, instant, list } from '../lib/fields.ts';
import { named, newName, reference, timeMs } from '../lib/fields.ts';
import { backupLimits, recoveryLimits } from '../limits.ts';
import { proxyLabels } from '../placement/schema.ts';
import type { SavesetView } from '../catalog/schema.ts';

/**
 * What people say to and hear from a recovery: requests (input, with defaults filled in), views
 * (what is shown; null where there is nothing yet, so that the shape of the JSON never changes),
 * and the service behind them. Ids and names are accepted wherever a reference is.
 */
const dayMs = 86_400_000;

export const leaseMs = z
  .number('must be a duration in milliseconds')
  .int('must be whole milliseconds')
  .min(1, 'would have ended already: a lease ends in the future')
  .max(recoveryLimits.leaseMsMax, `must be at most ${recoveryLimits.leaseMsMax / dayMs} days`);

export const recoveryMode = z
  .enum(['instant', 'publish', 'new', 'flr'], 'must be instant, publish, new or flr')
  .describe(
    'instant: run the machine from its backup. publish: only an NFS export of the clone, for ' +
      'the given clients. new: restore whole disks to a datastore as a new machine. flr: attach ' +
      'its disks to a running machine.',
  );
export type RecoveryMode = z.infer<typeof recoveryMode>;

export const recoveryRequest = z
  .strictObject({
    machine: reference.optional().describe('The machine whose latest saveset is taken.'),
    saveset: reference.optional().describe('This saveset and no other.'),
    at: instant.optional().describe('The latest saveset at or before this time.'),
    mode: recoveryMode.default('instant'),
    hypervisor: reference.optional(),
    host: reference.optional(),
    proxy: reference.optional(),
    without: z
      .array(reference, 'must be a list of names')
      .max(256, 'must be at most 256 names')
      .default([])
      .describe('Proxies and hosts that will not do.'),
    prefer: proxyLabels.default({}).describe('Labels that the proxy should carry.'),
    name: newName.optional().describe('Name of the recovered machine.'),
    powerOn: flag.default(false),
    identity: z
      .enum(['new', 'keep'], 'must be new or keep')
      .default('new')
      .describe('new: fresh UUID and MAC addresses. keep: those of the backup.'),
    connectNetworks: flag.default(false),
    leaseMs: leaseMs.default(recoveryLimits.leaseMsDefault),
    clients: z
      .array(clientAddress, 'must be a list of addresses')
      .min(1, 'must name at least one address')
      .max(recoveryLimits.clientsMax, `must be at most ${recoveryLimits.clientsMax} addresses`)
      .optional()
      .describe('publish: the addresses that may mount the export.'),
    datastore: reference.optional().describe('new: where the disks go.'),
    into: reference.optional().describe('flr: the running machine that sees the disks.'),
    disks: z
      .array(reference, 'must be a list of names')
      .min(1, 'must name at least one disk')
      .max(backupLimits.disksMax, `must be at most ${backupLimits.disksMax} disks`)
      .optional()
      .describe('flr: these disks of the saveset instead of all, such as vda.'),
    relocateTo: reference.optional().describe('Move the machine there once it is available.'),
    relocateAt: z.union([z.literal('at once'), instant], "must be 'at once' or a time").optional(),
    dryRun: flag.default(false).describe('Answer the plan and change nothing.'),
  })
  .superRefine((request, context) => {
    const wrong = (path: string, message: string) =>
      context.addIssue({ code: 'custom', path: [path], message });
    const { mode } = request;
    if (request.machine === undefined && request.saveset === undefined) {
      wrong('machine', 'is missing: name a machine or a saveset');
    }
    if (request.saveset !== undefined && request.at !== undefined) {
      wrong('at', 'chooses a saveset by time: leave it out, as a saveset is named');
    }
    if (mode === 'publish') {
      if (request.clients === undefined) wrong('clients', 'is missing: publish to which address?');
      if (request.powerOn) wrong('powerOn', 'is for a machine: publish makes an export alone');
      if (request.host !== undefined) wrong('host', 'is for a machine: publish needs clients');
    } else if (mode === 'flr') {
      if (request.into === undefined) wrong('into', 'is missing: into which running machine?');
      if (request.powerOn) wrong('powerOn', 'is for a new machine: flr needs one that runs');
      if (request.host !== undefined)
        wrong(
          'host',
          'is not for flr: its host is the one that the target machine runs on, leave it out',
        );
      if (request.connectNetworks) wrong('connectNetworks', 'is for a machine: flr adds disks');
    }
    if (mode !== 'flr') {
      if (request.into !== undefined) wrong('into', `is for mode flr, not ${mode}`);
      if (request.disks !== undefined) wrong('disks', `is for mode flr; ${mode} takes all`);
    }
    if (mode !== 'publish' && request.clients !== undefined) {
      wrong('clients', `is for mode publish; mode ${mode} exports to its host alone`);
    }
    if (mode !== 'instant' && request.relocateTo !== undefined) {
      wrong('relocateTo', 'is for mode instant: only a running machine can be relocated');
    }
    if (mode === 'flr' && request.datastore !== undefined) {
      wrong('datastore', 'is for mode new: flr writes to no datastore');
    }
    if (mode === 'instant' && request.datastore !== undefined) {
      wrong('datastore', 'is for mode new; use relocateTo to move an instant machine later');
    }
    if (request.relocateAt !== undefined && request.relocateTo === undefined) {
      wrong('relocateTo', 'is missing: relocate to which datastore?');
    }
  });
/** As the service gets it: defaults filled in, times in milliseconds. */
export type RecoveryRequest = z.output<typeof recoveryRequest>;
/** As a caller may write it. */
export type RecoveryRequestInput = z.input<typeof recoveryRequest>;

export const recoveryState = z.enum([
  'starting',
  'available',
  'relocating',
  'cleaning',
  'parked',
  'done',
  'failed',
  'cancelled',
]);
export type RecoveryState = z.infer<typeof recoveryState>;

export const stepState = z.enum(['waiting', 'running', 'done', 'failed', 'undone', 'skipped']);

const stepProgress = z.object({
  done: z.number(),
  total: z.number(),
  unit: z.enum(['bytes', 'steps']),
});

const stepParts = {
  name: z.string(),
  state: stepState,
  startedMs: timeMs.nullable(),
  endedMs: timeMs.nullable(),
  progress: stepProgress.nullable(),
  detail: z.string().nullable().describe('One line for people.'),
};

export const recoveryStep = z.object({
  number: z.int().min(1).max(13),
  ...stepParts,
  subSteps: list(z.object(stepParts)),
});
export type RecoveryStep = z.infer<typeof recoveryStep>;

export const recovery = z.object({
  id: z.string(),
  machine: named.describe('The machine in the backup.'),
  saveset: z.object({ id: z.string(), takenAtMs: timeMs }),
  mode: recoveryMode,
  state: recoveryState,
  name: z.string().describe('Name of the recovered machine, or of the publication.'),
  hypervisor: z.string().nullable(),
  host: z.string().nullable(),
  proxy: z.string().nullable(),
  datastore: z.string().nullable(),
  clonePath: z.string().nullable(),
  export: z
    .object({
      path: z.string(),
      address: z.string(),
      nfsPort: z.number(),
      mountPort: z.number(),
    })
    .nullable(),
  disks: list(
    z.object({
      name: z.string(),
      path: z.string().describe("Below the export's path."),
      sizeBytes: bytes,
    }),
  ),
  target: named.nullable().describe('flr: the machine that the disks are attached to.'),
  attached: list(
    z.object({
      disk: z.string().describe('Its name in the saveset.'),
      device: z.string().describe("Its name in the target's configuration."),
      serial: z.string().nullable().describe('What the guest can find it by.'),
      seenAs: z.string().nullable().describe("The guest agent's word; null: not confirmed."),
    }),
  ),
  machineId: z.string().nullable().describe("The recovered machine's id at its hypervisor."),
  createdMs: timeMs,
  availableMs: timeMs.nullable(),
  timeToAvailableMs: z.number().nullable(),
  leaseEndsMs: timeMs.nullable().describe('Parked: until when what was written is kept.'),
  endedMs: timeMs.nullable(),
  writtenBytes: bytes.describe('What was written since: the size of the write layer.'),
  warnings: list(z.string()),
  error: failure.nullable(),
  steps: list(recoveryStep),
  relocation: z
    .object({
      target: z.string(),
      doneBytes: bytes,
      totalBytes: bytes,
      atMs: timeMs.nullable(),
      error: failure.nullable().describe('Why it was not moved: it runs on from its backup.'),
    })
    .nullable(),
  hasPicture: z.boolean(),
});
export type Recovery = z.infer<typeof recovery>;

/** The making of a saveset from what a recovery wrote. */
export const sealing = z.object({
  id: z.string(),
  state: z.enum(['running', 'done', 'failed', 'cancelled']),
  startedMs: timeMs,
  endedMs: timeMs.nullable(),
  doneBytes: bytes.describe('Of the blocks that were written to, at least in part.'),
  totalBytes: bytes,
  savesetId: z.string().nullable(),
  error: failure.nullable(),
});
export type Sealing = z.infer<typeof sealing>;

/** What a dry run answers: the choices with their reasons, and every change that would be made. */
export const recoveryPlan = z.object({
  machine: named,
  saveset: z.object({ id: z.string(), takenAtMs: timeMs }),
  mode: recoveryMode,
  name: z.string(),
  hypervisor: z.string().nullable(),
  host: z.string().nullable(),
  proxy: z.string().nullable(),
  proxyAddress: z.string().nullable(),
  datastore: z.string().nullable(),
  clients: list(z.string()),
  leaseEndsMs: timeMs,
  steps: list(z.object({ number: z.number(), name: z.string(), detail: z.string() })),
  changes: list(z.string()).describe('What becomes different in the configuration.'),
  candidates: list(
    z.object({
      proxy: z.string(),
      address: z.string().describe("The proxy's address for this host."),
      host: z.string(),
      cluster: z.string().nullable(),
      datastore: z.string().nullable().describe('The production datastore that it must see.'),
      score: z.number(),
      chosen: z.boolean(),
      refusals: list(z.string()).describe('Why it will not do; empty: it will.'),
      reasons: list(z.string()).describe('What its score is made of.'),
    }),
  ),
  refusal: failure.nullable().describe('Why no candidate will do; null: one will.'),
  warnings: list(z.string()),
});
export type RecoveryPlan = z.infer<typeof recoveryPlan>;

export const cancelRequest = z.strictObject({
  keepWrites: flag.default(false).describe('Park instead of discarding what was written.'),
});
export type CancelRequest = z.output<typeof cancelRequest>;

export const renewRequest = z.strictObject({ leaseMs: leaseMs.describe('Counted from now.') });
export type RenewRequest = z.output<typeof renewRequest>;

export const relocateRequest = z.strictObject({
  datastore: reference.optional().describe('Needed when the request for recovery named none.'),
  bandwidthBytesPerSecond: z
    .number('must be a number of bytes per second')
    .int('must be whole bytes per second')
    .min(0, 'must not be negative')
    .optional()
    .describe('0 or none: what keeps the latency of the guest in bounds.'),
  at: instant.optional().describe('Planned for then; at once when missing.'),
});
export type RelocateRequest = z.output<typeof relocateRequest>;

export const recoveryFilter = z.strictObject({
  machine: reference.optional(),
  state: recoveryState.optional(),
  active: z
    .stringbool('must be true or false')
    .optional()
    .describe('true: only those that still hold something (not done, failed or cancelled).'),
});
export type RecoveryFilter = z.output<typeof recoveryFilter>;

/**
 * `reference`: a recovery's id, an unambiguous beginning of it, its name, or the name of its
 * machine when exactly one active recovery is of that machine. Throws `not-found` with the
 * nearest names (src/lib/text.ts: `pick`).
 */
export interface RecoveryService {
  /** Durable when it resolves. The work goes on by itself. */
  create(request: RecoveryRequest): Promise<Recovery>;
  /** Checks all that can be checked and changes nothing. */
  plan(request: RecoveryRequest): Promise<RecoveryPlan>;
  /** Newest first. */
  list(filter: RecoveryFilter): Promise<readonly Recovery[]>;
  get(reference: string): Promise<Recovery>;
  cancel(reference: string, request: CancelRequest): Promise<Recovery>;
  renew(reference: string, request: RenewRequest): Promise<Recovery>;
  relocate(reference: string, request: RelocateRequest): Promise<Recovery>;
  /**
   * Resolves when the new saveset is durable; what was written decides how long. The same writes
   * sealed again answer the same saveset.
   */
  seal(reference: string): Promise<SavesetView>;
  readonly seals: SealService;
  /** A parked one goes on: exported, registered and powered on again. */
  resume(reference: string): Promise<Recovery>;
  /** A PNG of the machine's screen. Throws `not-found` when there is none. */
  picture(reference: string): Promise<Buffer>;
  /** The view as it is, then every change of it, until it has ended or the signal aborts. */
  watch(reference: string, signal: AbortSignal): AsyncIterable<Recovery>;
}

/** `reference`: as for `RecoveryService`. */
export interface SealService {
  /** Durable when it resolves: it goes on over kills, by itself. */
  begin(reference: string): Promise<Sealing>;
  /** Newest first. */
  list(reference: string): Promise<readonly Sealing[]>;
  get(reference: string, sealId: string): Promise<Sealing>;
  cancel(reference: string, sealId: string): Promise<Sealing>;
  watch(reference: string, sealId: string, signal: AbortSignal): AsyncIterable<Sealing>;
}

/** Names in the OpenAPI document. */
z.globalRegistry.add(recoveryRequest, { id: 'RecoveryRequest' });
z.globalRegistry.add(recovery, { id: 'Recovery' });
z.globalRegistry.add(recoveryStep, { id: 'RecoveryStep' });
z.globalRegistry.add(sealing, { id: 'Sealing' });
z.globalRegistry.add(recoveryPlan, { id: 'RecoveryPlan' });
z.globalRegistry.add(cancelRequest, { id: 'CancelRequest' });
z.globalRegistry.add(renewRequest, { id: 'RenewRequest' });
z.globalRegistry.add(relocateRequest, { id: 'RelocateRequest' });
