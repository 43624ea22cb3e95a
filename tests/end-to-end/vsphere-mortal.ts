import type { VimClient } from '#src/hypervisors/vsphere/client.ts';
import type { Clock } from '#src/lib/clock.ts';
import type { Proxy } from '#src/proxy/port.ts';

/**
 * The life of one server, which ends at a meeting with the world outside: from then on nothing that
 * passes through here acts or returns, which is what kill -9 looks like from the inside.
 */
export class Mortality {
  readonly died: Promise<'died'>;
  /** Calls that change something, each met before it is made and after its answer. */
  readonly meetings: string[] = [];
  /** What happens to the world at a meeting that is survived. */
  onMeet: (name: string) => Promise<void> = async () => undefined;
  #left: number;
  #die: (word: 'died') => void = () => undefined;

  constructor(dieAt: number) {
    this.#left = dieAt;
    this.died = new Promise((resolve) => (this.#die = resolve));
  }

  get isAlive(): boolean {
    return this.#left > 0;
  }

  /** It dies at that many meetings from now. */
  dieAfter(meetings: number): void {
    this.#left = meetings;
  }

  async meet(name: string): Promise<void> {
    if (this.isAlive) {
      this.meetings.push(name);
      this.#left -= 1;
    }
    if (this.isAlive) return this.onMeet(name);
    this.#die('died');
    await new Promise(() => undefined);
  }

  async around<T>(name: string, isMet: boolean, work: () => Promise<T>): Promise<T> {
    if (isMet) await this.meet(`before ${name}`);
    else if (!this.isAlive) await new Promise(() => undefined);
    try {
      return await work();
    } finally {
      if (isMet) await this.meet(`after ${name}`);
      else if (!this.isAlive) await new Promise(() => undefined);
    }
  }

  /** Nobody wakes up in a dead process. */
  clock(inner: Clock): Clock {
    return {
      now: () => inner.now(),
      monotonic: () => inner.monotonic(),
      sleep: async (milliseconds, signal) => {
        await inner.sleep(milliseconds, signal);
        if (!this.isAlive) await new Promise(() => undefined);
      },
    };
  }
}

/** What changes a vCenter, and not only our view of it. */
const changing =
  /_Task$|^(?:CreateNasDatastore|RemoveDatastore|UnregisterVM|AnswerVM|ShutdownGuest)$/u;

export function mortalClient(client: VimClient, life: Mortality): void {
  const call = client.call.bind(client);
  client.call = (method, ...rest) =>
    life.around(method, changing.test(method), () => call(method, ...rest));
}

const changes: readonly (keyof Proxy)[] = [
  'createClone',
  'deleteClone',
  'createExport',
  'deleteExport',
  'writeCloneFile',
];

export function mortalProxy(proxy: Proxy, life: Mortality): Proxy {
  return new globalThis.Proxy(proxy, {
    get(object, name: keyof Proxy) {
      const value: unknown = Reflect.get(object, name, object);
      if (typeof value !== 'function') return value;
      return (...values: unknown[]) =>
        life.around(name, changes.includes(name), async () => {
          const answer: unknown = await Reflect.apply(value, object, values);
          return answer;
        });
    },
  });
}
