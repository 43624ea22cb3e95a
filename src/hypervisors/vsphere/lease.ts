import { RouseError, isRouseError, toRouseError } from '../../errors.ts';
import type { BackupLease, NfcAccess } from '../port.ts';
import type { VimClient } from './client.ts';
import { busOf, disksOf } from './devices.ts';
import type { Disk } from './devices.ts';
import { faultError, isAway, isFault } from './faults.ts';
import { TrustedHttp } from './http.ts';
import { vsphereLimits } from './limits.ts';
import { ignoreFault, readOne } from './properties.ts';
import { whileBusy } from './snapshots.ts';
import type { Trust } from './trust.ts';
import { all, at, flagAt, leaf, numberAt, refAt, textAt } from './vim-xml.ts';
import type { Ref, VimNode } from './vim-xml.ts';
import { watchUntil } from './watch.ts';

/**
 * An export lease (HttpNfcLease): while it is told that reading goes on, its hosts hand out a
 * snapshot's disks as streamOptimized VMDKs. It ends with the session that it was made in.
 */
export interface LeaseOptions {
  readonly client: VimClient;
  /** Of the manager, and of hosts that a lease tells no thumbprint of. */
  readonly trust: Trust;
  readonly managerUrl: URL;
  readonly silenceMs?: number;
  /** Aborted: the lease is not even waited for any more. */
  readonly signal: AbortSignal;
}

export async function openLease(
  options: LeaseOptions,
  disks: readonly NfcAccess[],
): Promise<BackupLease> {
  const { client, signal } = options;
  const id = disks[0]?.snapshot;
  if (id === undefined || disks.some(({ snapshot }) => snapshot !== id)) {
    throw new RouseError('bad-request', 'a lease is for the disks of one snapshot');
  }
  const snapshot = { type: 'VirtualMachineSnapshot', id };
  const found = await readOne(client, snapshot, ['config.hardware']).catch((error: unknown) => {
    throw isRouseError(error, 'not-found') ? snapshotIsGone() : error;
  });
  const hardware = found.get('config.hardware');
  const devices = hardware && { ...hardware, children: all(hardware, 'device') };
  const answer = await whileBusy(
    client,
    () => client.call('ExportSnapshot', snapshot, [], { signal }),
    signal,
  );
  const ref = refAt(answer, 'returnval');
  if (ref === undefined) throw new RouseError('hypervisor-error', `${client.name} gave no lease`);
  try {
    const info = await readyInfo(client, ref, signal);
    const urls = urlsByKey(info, disksOf(devices));
    for (const { key } of disks) {
      if (!urls.has(key)) throw new RouseError('hypervisor-error', `the lease has no disk ${key}`);
    }
    return new Lease(options, ref, urls, (numberAt(info, 'leaseTimeout') ?? 300) * 1000);
  } catch (error) {
    await client.call('HttpNfcLeaseAbort', ref, [], { bound: true }).catch(ignoreFault);
    throw error;
  }
}

function snapshotIsGone(): RouseError {
  return new RouseError('wrong-state', 'the snapshot of the backup is gone: somebody removed it', {
    advice: 'Back the machine up again; snapshots that begin with rouse- go by themselves.',
  });
}

async function readyInfo(client: VimClient, lease: Ref, signal: AbortSignal): Promise<VimNode> {
  const what = 'the export lease';
  await watchUntil(
    client,
    [{ ref: lease, paths: ['state', 'error'] }],
    (latest) => {
      const state = latest.get(lease, 'state')?.text;
      if (state === 'ready') return true;
      if (state !== 'error' && state !== 'done') return undefined;
      const error = latest.get(lease, 'error');
      throw faultError(at(error, 'fault') ?? error, textAt(error, 'localizedMessage'), what);
    },
    { what, timeoutMs: vsphereLimits.leaseReadyMsMax, signal },
  );
  const info = (await readOne(client, lease, ['info'])).get('info');
  if (info === undefined) throw new RouseError('hypervisor-error', `${what} has no information`);
  return info;
}

interface DeviceUrl {
  readonly url: string;
  readonly thumbprint: string;
}

/**
 * `key` names controller and unit: `/vm-12/ParaVirtualSCSIController0:1`. Where that fits no disk,
 * they come in the order of the machine's hardware; the size of each is compared when it is read.
 */
function urlsByKey(info: VimNode, disks: readonly Disk[]): ReadonlyMap<number, DeviceUrl> {
  const told = all(info, 'deviceUrl')
    .filter((one) => flagAt(one, 'disk'))
    .map((one) => ({
      slot: slotOf(textAt(one, 'key') ?? ''),
      url: textAt(one, 'url') ?? '',
      thumbprint: textAt(one, 'sslThumbprint') ?? '',
    }));
  const bySlot = told.map(({ slot }) => disks.find(({ name }) => name === slot));
  const areNamed =
    bySlot.every((disk) => disk !== undefined) && new Set(bySlot).size === told.length;
  const inOrder = disks.filter(({ diskMode }) => !diskMode.startsWith('independent_'));
  const chosen = areNamed ? bySlot : inOrder.length === told.length ? inOrder : [];
  return new Map(
    told.flatMap(({ url, thumbprint }, index) => {
      const disk = chosen[index];
      return disk === undefined ? [] : [[disk.key, { url, thumbprint }] as const];
    }),
  );
}

function slotOf(key: string): string | undefined {
  const [, type = '', bus, unit] = /\/(\w+?)(\d+):(\d+)$/u.exec(key) ?? [];
  const kind = busOf(type);
  return kind === undefined ? undefined : `${kind}${bus}:${unit}`;
}

class Lease implements BackupLease {
  readonly #options: LeaseOptions;
  readonly #ref: Ref;
  readonly #urls: ReadonlyMap<number, DeviceUrl>;
  readonly #lifeMs: number;
  readonly #hosts = new Map<string, TrustedHttp>();
  readonly #ending = new AbortController();
  /** Aborted when the lease is lost under its downloads. */
  readonly #lost = new AbortController();
  readonly #telling: Promise<void>;
  #share = 0;

  constructor(
    options: LeaseOptions,
    ref: Ref,
    urls: ReadonlyMap<number, DeviceUrl>,
    lifeMs: number,
  ) {
    this.#options = options;
    this.#ref = ref;
    this.#urls = urls;
    this.#lifeMs = lifeMs;
    this.#telling = this.#keepAlive();
  }

  progress(share: number): void {
    this.#share = share;
  }

  async #keepAlive(): Promise<void> {
    const { client } = this.#options;
    const { signal } = this.#ending;
    const { leaseTellMsMin, leaseTellMsMax, leaseTellsPerLife } = vsphereLimits;
    const pauseMs = Math.max(
      leaseTellMsMin,
      Math.min(leaseTellMsMax, this.#lifeMs / leaseTellsPerLife),
    );
    while (!signal.aborted) {
      try {
        // 100 would say that it is over.
        const percent = Math.min(99, Math.floor(this.#share * 100));
        const args = [leaf('percent', percent)];
        await client.call('HttpNfcLeaseProgress', this.#ref, args, { bound: true, signal });
      } catch (error) {
        if (signal.aborted) return;
        // A manager that is away does not end downloads from hosts; the lease itself does, in time.
        if (!isAway(error) && !isRouseError(error, 'time-out'))
          return this.#lost.abort(lostBecause(error));
      }
      await client.clock.sleep(pauseMs, signal).catch(() => undefined);
    }
  }

  async *download(access: NfcAccess, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const from = this.#urls.get(access.key);
    if (from === undefined) throw new RouseError('internal', `no download of disk ${access.key}`);
    const url = new URL(from.url.replace('//*', `//${this.#options.managerUrl.host}`));
    const http = this.#hostOf(url, from.thumbprint);
    const either = AbortSignal.any([signal, this.#lost.signal]);
    try {
      const { status, body } = await http.stream({
        path: `${url.pathname}${url.search}`,
        silenceMs: this.#options.silenceMs ?? vsphereLimits.downloadSilenceMsMax,
        signal: either,
      });
      if (status !== 200) {
        const message = `${http.name} answers HTTP ${status} to the download of a disk`;
        throw new RouseError('hypervisor-error', message, {
          advice: 'The lease may have ended meanwhile; look at the tasks of the machine.',
        });
      }
      yield* body;
    } catch (error) {
      if (this.#lost.signal.aborted) throw toRouseError(this.#lost.signal.reason, http.name);
      throw error;
    }
  }

  /** The manager's own pin where it serves itself; else what it, who has proven itself, tells. */
  #hostOf(url: URL, thumbprint: string): TrustedHttp {
    const { managerUrl, trust } = this.#options;
    const known = this.#hosts.get(url.host);
    if (known !== undefined) return known;
    const isManager = url.hostname === managerUrl.hostname && portOf(url) === portOf(managerUrl);
    const http = new TrustedHttp(url, isManager ? trust : hostTrust(url, thumbprint, trust));
    this.#hosts.set(url.host, http);
    return http;
  }

  async end(outcome: 'complete' | 'abort'): Promise<void> {
    this.#ending.abort();
    await this.#telling;
    for (const http of this.#hosts.values()) http.close();
    const method = outcome === 'complete' ? 'HttpNfcLeaseComplete' : 'HttpNfcLeaseAbort';
    const options = { bound: true, timeoutMs: 10_000 };
    await this.#options.client.call(method, this.#ref, [], options).catch(ignoreFault);
  }
}

function portOf(url: URL): string {
  return url.port === '' ? '443' : url.port;
}

/** Upper case with colons, SHA-1 or SHA-256 by its length. */
function hostTrust(url: URL, thumbprint: string, trust: Trust): Trust {
  const hex = thumbprint.replaceAll(/[\s:]/gu, '').toUpperCase();
  const pairs = (hex.match(/../gu) ?? []).join(':');
  if (/^[0-9A-F]{64}$/u.test(hex)) return { fingerprint: pairs };
  if (/^[0-9A-F]{40}$/u.test(hex)) return { thumbprint: pairs };
  if ('authority' in trust) return trust;
  throw new RouseError(
    'forbidden',
    `nothing is known that makes the host ${url.hostname} trusted`,
    {
      advice: 'Add the hypervisor with --ca: the authority of vCenter also vouches for its hosts.',
    },
  );
}

function lostBecause(error: unknown): RouseError {
  const known = toRouseError(error, 'the export lease');
  const isSession = isFault(error, 'NotAuthenticated');
  const why = isSession ? 'its session has ended' : known.message;
  return new RouseError(
    'hypervisor-error',
    `the export lease was lost while disks were read: ${why}`,
    {
      advice: 'It is tried again by itself with a new lease.',
    },
  );
}
