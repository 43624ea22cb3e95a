import { FileNode, type PageUsage } from './forgetful-content.ts';
import type { SeededRandom } from './seeded-random.ts';

export type Node = FileNode | DirectoryNode;

/** `remove` and `set` of one change happen together or not at all. */
interface NameChange {
  readonly remove?: string;
  readonly set?: { readonly name: string; readonly node: Node };
}

/** A directory of the forgetful file system: names now, names sure to be on the disk. */
export class DirectoryNode {
  #now = new Map<string, Node>();
  #durable = new Map<string, Node>();
  #pending: NameChange[] = [];

  get(name: string): Node | undefined {
    return this.#now.get(name);
  }

  names(): string[] {
    return [...this.#now.keys()];
  }

  set(name: string, node: Node): void {
    this.#change({ set: { name, node } });
  }

  delete(name: string): void {
    this.#change({ remove: name });
  }

  renameWithin(from: string, to: string, node: Node): void {
    if (from !== to) this.#change({ remove: from, set: { name: to, node } });
  }

  sync(): void {
    this.#pending = [];
    this.#durable = new Map(this.#now);
  }

  afterPowerCut(random: SeededRandom): DirectoryNode {
    return this.#afterPowerCut(random, new Map());
  }

  #afterPowerCut(random: SeededRandom, done: Map<Node, Node>): DirectoryNode {
    const names = new Map(this.#durable);
    const mode = random.below(6);
    for (const change of this.#pending) {
      if (mode === 1 || (mode !== 0 && random.chance(0.5))) apply(names, change);
    }
    const directory = new DirectoryNode();
    done.set(this, directory);
    for (const [name, node] of names) {
      let next = done.get(node);
      if (next === undefined) {
        next =
          node instanceof FileNode ? node.afterPowerCut(random) : node.#afterPowerCut(random, done);
        done.set(node, next);
      }
      directory.#now.set(name, next);
    }
    directory.sync();
    return directory;
  }

  /** The same tree with its unsynced changes, sharing nothing with this one. */
  copy(done: Map<Node, Node>): DirectoryNode {
    const directory = new DirectoryNode();
    done.set(this, directory);
    const copyOf = (node: Node): Node => {
      const known = done.get(node);
      if (known !== undefined) return known;
      const next = node instanceof FileNode ? node.copy() : node.copy(done);
      done.set(node, next);
      return next;
    };
    for (const [name, node] of this.#now) directory.#now.set(name, copyOf(node));
    for (const [name, node] of this.#durable) directory.#durable.set(name, copyOf(node));
    directory.#pending = this.#pending.map((change) =>
      change.set === undefined
        ? change
        : { ...change, set: { name: change.set.name, node: copyOf(change.set.node) } },
    );
    return directory;
  }

  adopt(usage: PageUsage): void {
    for (const node of new Set(this.#now.values())) node.adopt(usage);
  }

  #change(change: NameChange): void {
    apply(this.#now, change);
    this.#pending.push(change);
  }
}

function apply(names: Map<string, Node>, change: NameChange): void {
  if (change.remove !== undefined) names.delete(change.remove);
  if (change.set !== undefined) names.set(change.set.name, change.set.node);
}

export function namesOf(path: string): string[] {
  return path.split('/').filter((name) => name !== '' && name !== '.');
}
