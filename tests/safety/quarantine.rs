//! A tenant's content takes no provider away from others; a component's name can't be taken over.
